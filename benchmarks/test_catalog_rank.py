"""Exact ranks with seen items left out, against the dense score matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks._common import Case
from seqrec_kernels import SeenItems, backend, catalog_rank

SHAPES = [(2048, 12_101, 64), (1024, 50_000, 64)]
SEEN = 8  # items a user has met


def case(b: int, v: int, d: int) -> Case:
    torch.manual_seed(0)
    q, e, y = torch.randn(b, d), torch.randn(v, d), torch.randint(v, (b,))
    seen = SeenItems.from_lists(torch.randint(v, (b, SEEN)).tolist())
    rows = torch.arange(b).repeat_interleave(SEEN)

    def scores() -> Tensor:
        matrix = q @ e.T
        own = matrix.gather(1, y[:, None])
        matrix[rows, seen.ids] = -torch.inf
        return matrix.scatter_(1, y[:, None], own)

    def topk() -> Tensor:
        return torch.topk(scores(), 20).indices == y[:, None]

    def count() -> Tensor:
        matrix = scores()
        return (matrix > matrix.gather(1, y[:, None])).sum(1)

    def gate() -> None:
        ours = catalog_rank(q, e, y, seen=seen)
        with backend("reference"):
            exact = catalog_rank(q.double(), e.double(), y, seen=seen)
        # a float32 sum may swap two neighbours out of tens of thousands
        assert (ours.greater - exact.greater).abs().max() <= 2
        assert ((ours.greater != exact.greater).float().mean()) < 0.02

    rivals: dict[str, Callable[[], object]] = {
        "ours": lambda: catalog_rank(q, e, y, seen=seen),
        "dense + mask + topk(20)": topk,
        "dense + mask + count": count,
    }
    return Case(f"catalog_rank B={b} V={v} D={d}, {SEEN} seen items a row", rivals, gate)


def cases() -> list[Case]:
    return [case(*shape) for shape in SHAPES]


@pytest.mark.parametrize("rival", ["ours", "dense + mask + topk(20)", "dense + mask + count"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_catalog_rank(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(*shape)
    made.gate()
    benchmark(made.rivals[rival])
