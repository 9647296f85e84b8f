"""Where the triton kernels are tested: on a GPU, or interpreted on the CPU.

Triton decides when it is imported whether kernels are compiled or interpreted. So the files that
use this one run twice: with the other tests, on a GPU and skipped without one, and in a process of
its own under ``TRITON_INTERPRET=1``, which ``test_triton_interpreter.py`` starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seqrec_kernels import backend
from seqrec_kernels.triton_loader import INTERPRETED, unsupported


def _reason() -> str | None:
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device; test_triton_interpreter.py runs this file interpreted"
    return unsupported(torch.zeros(1, 1, device="cuda"), torch.zeros(1, 1, device="cuda"))


DEVICE = "cpu" if INTERPRETED else "cuda"
MARKS = [pytest.mark.skipif(_reason() is not None, reason=str(_reason()))]
if not INTERPRETED:
    MARKS.append(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    """Every operator runs on its triton kernels; a call that cannot is an error, not a fallback."""
    with backend("triton"):
        yield


@pytest.fixture(params=["whole", "split"])
def tiny_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that little inputs run through many; loops in one piece, and cut in parts."""
    from seqrec_kernels import tiles

    monkeypatch.setattr(tiles, "OVERRIDE", tiles.Tile(16, 32, 32, 32, 4, 1))
    monkeypatch.setattr(tiles, "PROGRAMS", 1 if request.param == "whole" else 10**6)
    monkeypatch.setattr(tiles, "LEAST", 2)
