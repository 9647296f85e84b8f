"""Every instruction set of the compiled CPU library, one after the other, as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seqrec_kernels import backend, native

# named without asking the library, so that a run without it shows what it skips
NAMES = ("avx512_bf16", "avx512", "avx2", "portable")


@pytest.fixture(params=NAMES, autouse=True)
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces the native implementation and one of its instruction sets, or skips and says why."""
    if native.MISSING is not None:
        pytest.skip(native.MISSING)
    if request.param not in native.versions():
        pytest.skip(f"this processor does not run {request.param}")
    with native.version(request.param), backend("native"):
        yield request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
