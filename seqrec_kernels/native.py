"""The compiled CPU library: where it is, whether it loads, and why not.

``setup.py`` builds it from ``csrc/`` where there is torch and a compiler. It is built against
torch's stable interface, so one file serves every Python and every torch from 2.10 on, and it is
no Python module: loading it registers operators under ``torch.ops.seqrec_native``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from seqrec_kernels.types import SeenItems

LIBRARY = Path(__file__).with_name("_cpu.so")


def load(library: Path) -> str | None:
    """Registers the operators of ``library``; None, or why that is not possible."""
    if not library.exists():
        return "the C++ library is not built; pip install --no-build-isolation . builds it"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"the C++ library does not load: {' '.join(str(error).split())}"
    return None


# None where the library is loaded, else why it is not. Loaded with the package and not at first
# use: a first use may be inside a graph that is being traced, where nothing can be loaded.
MISSING = load(LIBRARY)


def missing() -> str | None:
    """None where the library is loaded, else why it is not."""
    return MISSING


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the native CPU paths: None where they run, else why not."""
    if queries.dtype == torch.float64:
        return "float64 runs the reference"
    if queries.device.type != "cpu":
        return f"queries are on {queries.device.type}"
    return MISSING


def from_first(
    items: Tensor, item_bias: Tensor | None, first_item: int, seen: SeenItems | None
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Table and bias from ``first_item`` on, and the parts of ``seen``, made contiguous."""
    if item_bias is not None:
        item_bias = item_bias.detach()[first_item:].contiguous()
    parts = [None, None, None] if seen is None else list(seen)
    dense = [None if part is None else part.contiguous() for part in parts]
    return items.detach()[first_item:], item_bias, dense


def versions() -> list[str]:
    """The instruction sets the loaded library has kernels for and this machine runs, best first."""
    return str(torch.ops.seqrec_native.available_kernels()).split(",")


@contextmanager
def version(name: str) -> Iterator[None]:
    """Runs the kernels of one instruction set inside, in all threads; for tests and measurements.

    Raises:
        ValueError: this machine does not run them.
    """
    if not torch.ops.seqrec_native.force_kernels(name):
        raise ValueError(f"{name!r} does not run here; {', '.join(versions())} do")
    try:
        yield
    finally:
        torch.ops.seqrec_native.force_kernels("")
