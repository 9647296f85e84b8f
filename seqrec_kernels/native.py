"""The compiled libraries: where they are, whether they load, and why not.

``setup.py`` builds them from ``csrc/`` where there is torch and a compiler: one for the CPU, which
holds the schemas of all operators, and with nvcc one for CUDA. They are built against torch's
stable interface, so one file serves every Python and every torch from 2.10 on, and they are no
Python modules: loading one registers operators under ``torch.ops.seqrec_native``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from seqrec_kernels.types import SeenItems

LIBRARY = Path(__file__).with_name("_cpu.so")
CUDA_LIBRARY = Path(__file__).with_name("_cuda.so")

# what the packages call; a library that was built in place before one of them was written lacks it
OPERATORS = (
    "cross_entropy_forward", "cross_entropy_one_pass", "cross_entropy_backward",
    "rank", "topk", "select_scores", "select_keys", "sampled", "sampled_rows",
    "sort_slots", "add_sorted", "best_column", "column_keys", "column_numbers", "best_keys",
    "rerank_rows", "max_index_recall", "rerank_negatives", "contrast", "ascend_noise",
    "jagged_attention_forward", "jagged_attention_backward", "norm_forward", "norm_backward",
    "residual_forward", "residual_backward", "embed_forward", "embed_backward",
    "linear_forward", "linear_backward", "feed_forward_forward", "feed_forward_backward",
    "kmeans_step", "cuda_build", "force_kernels", "available_kernels",
)  # fmt: skip


def load(library: Path, name: str = "C++") -> str | None:
    """Registers the operators of ``library``; None, or why that is not possible."""
    if not library.exists():
        return f"the {name} library is not built; pip install --no-build-isolation . builds it"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"the {name} library does not load: {' '.join(str(error).split())}"
    lacking = [o for o in OPERATORS if not hasattr(torch.ops.seqrec_native, o)]
    if lacking:
        return (
            f"the {name} library is older than the package, without {', '.join(lacking)}; "
            "pip install --no-build-isolation . builds it anew"
        )
    return None


def load_cuda(library: Path) -> str | None:
    """``load`` for the CUDA library: only where torch has CUDA. It asks for no driver."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if (reason := MISSING or load(library, "CUDA")) is not None:
        return reason
    # a toolkit's kernels need a driver as new as itself, and of the driver torch's CUDA is a sign
    built = re.search(r"nvcc (\d+)", cuda_build())
    if built is None or built[1] != torch.version.cuda.partition(".")[0]:
        return f"built for {cuda_build()}, and torch has CUDA {torch.version.cuda}"
    return None


def cuda_build() -> str:
    """The architectures of the loaded CUDA library and its compiler: "8.0;9.0a by nvcc 13.0"."""
    return str(torch.ops.seqrec_native.cuda_build())


def served(architectures: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last chip of each range that code for ``architectures`` runs on.

    Code for 8.0 serves 8.x; code for 9.0a serves that chip alone; PTX (10.0+PTX) is compiled when
    it is loaded, for any later chip.
    """
    ranges = []
    for entry in architectures.split(";"):
        name, ptx, _ = entry.partition("+PTX")
        major, minor = (int(number) for number in name.rstrip("af").split("."))
        alone = name.endswith("a")
        last = (major, minor) if alone else (99 if ptx and name[-1] != "f" else major, 9)
        ranges.append(((major, minor), last))
    return ranges


# None where the library is loaded, else why it is not. Loaded with the package and not at first
# use: a first use may be inside a graph that is being traced, where nothing can be loaded.
MISSING = load(LIBRARY)
CUDA_MISSING = load_cuda(CUDA_LIBRARY)
CUDA_ARCHITECTURES = "" if CUDA_MISSING else cuda_build().split()[0]
CUDA_CHIPS = served(CUDA_ARCHITECTURES) if CUDA_ARCHITECTURES else []


def missing() -> str | None:
    """None where the CPU library is loaded, else why it is not."""
    return MISSING


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the native CPU paths: None where they run, else why not."""
    if queries.dtype == torch.float64:
        return "float64 runs the reference"
    if queries.device.type != "cpu":
        return f"queries are on {queries.device.type}"
    return MISSING


def cuda_unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the native CUDA paths: None where they run, else why not."""
    if queries.dtype == torch.float64:
        return "float64 runs the reference"
    if queries.device.type != "cuda":
        return f"queries are on {queries.device.type}"
    if CUDA_MISSING is not None:
        return CUDA_MISSING
    chip = torch.cuda.get_device_capability(queries.device)
    if not any(first <= chip <= last for first, last in CUDA_CHIPS):
        return f"built for {CUDA_ARCHITECTURES}, and this chip is {chip[0]}.{chip[1]}"
    return None


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
