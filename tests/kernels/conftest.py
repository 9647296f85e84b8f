"""What every kernel test runs under: a fixed seed and poisoned memory; tiny tiles and plans."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from seqrec_kernels import backend
from seqrec_kernels.ops.catalog_cross_entropy import blocked as cross_entropy
from seqrec_kernels.ops.catalog_cross_entropy import native
from seqrec_kernels.ops.catalog_rank import blocked as rank
from seqrec_kernels.ops.catalog_topk import blocked as topk
from seqrec_kernels.ops.contrast import ascend
from seqrec_kernels.ops.contrast import blocked as contrast
from seqrec_kernels.ops.jagged_attention import blocked as attention
from seqrec_kernels.ops.max_index_recall import blocked as recall
from seqrec_kernels.ops.rerank_negatives import blocked as rerank
from seqrec_kernels.ops.sampled import blocked as sampled

# bytes for the compiled loss: one row block at a time, several at a time, too little for one pass
WORKSPACES = {"blocks": 2**18, "whole": 2**23, "recompute": 2**10}

TORCH = (
    "test_catalog_", "test_contrast", "test_jagged_attention", "test_sampled", "test_max_index",
    "test_rerank",
)  # fmt: skip


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """What earlier tests compiled of a function counts towards the few variants it may have."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def torch_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """The files named in TORCH test the torch path, also where a faster one would run.

    The compiled paths and the Triton ones have files of their own.
    """
    if request.node.path.name.startswith(TORCH):
        with backend("blocked"):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the package allocates without writing it holds NaN, or -2**40 for integers.

    An output or workspace that is read before it is written then shows in the result instead of
    holding whatever the allocator left there.
    """

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any, **options: Any) -> torch.Tensor:
            made = allocate(*arguments, **options)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("seqrec_kernels") or torch.compiler.is_compiling():
                return made
            if made.dtype.is_floating_point:
                return made.fill_(torch.nan)
            if made.dtype == torch.bool:
                return made
            return made.fill_(max(-(2**40), torch.iinfo(made.dtype).min))

        return run

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks so small that little inputs run through many of them, ragged ones included."""
    tiles = cross_entropy.Tiles(
        one_pass=2**12, least_rows=1, most_rows=3, tile_rows=4, tile_items=5, product=7
    )
    monkeypatch.setattr(cross_entropy, "TILES", tiles)
    monkeypatch.setattr(rank, "ROWS", 16)
    monkeypatch.setattr(rank, "WIDTH", 64)
    monkeypatch.setattr(topk, "ROWS", 16)
    monkeypatch.setattr(topk, "WIDTH", 64)
    monkeypatch.setattr(topk, "GROUP", 4)
    monkeypatch.setattr(topk, "SPAN", 2)
    monkeypatch.setattr(topk, "_KEYS", 100)
    monkeypatch.setattr(contrast, "TILES", contrast.Tiles(floats=1, least_rows=3, most_rows=3))
    monkeypatch.setattr(ascend, "FLOATS", 40)
    monkeypatch.setattr(recall, "ROWS", 3)
    monkeypatch.setattr(recall, "WIDTH", 7)
    monkeypatch.setattr(rerank, "FLOATS", 1)
    monkeypatch.setattr(rerank, "WIDTH", 64)
    monkeypatch.setattr(attention, "TILES", attention.Tiles(floats=40, draws=2))
    monkeypatch.setattr(sampled, "TILES", sampled.Tiles(floats=1, most_rows=3))
    return None


@pytest.fixture(params=WORKSPACES)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has the compiled loss run this plan, where what it needs fits."""
    monkeypatch.setattr(native, "WORKSPACE", WORKSPACES[request.param])
    return str(request.param)
