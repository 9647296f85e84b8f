"""The best 20 items with seen items left out, against the dense score matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks._common import Case
from seqrec_kernels import SeenItems, catalog_topk

SHAPES = [(512, 50_000, 64), (1024, 12_101, 64)]
K, SEEN = 20, 8


def case(b: int, v: int, d: int) -> Case:
    torch.manual_seed(0)
    q, e = torch.randn(b, d), torch.randn(v, d)
    seen = SeenItems.from_lists(torch.randint(v, (b, SEEN)).tolist())
    rows = torch.arange(b).repeat_interleave(SEEN)

    def dense() -> torch.Tensor:
        matrix = q @ e.T
        matrix[rows, seen.ids] = -torch.inf
        return torch.topk(matrix, K).indices

    def gate() -> None:
        ours = catalog_topk(q, e, K, seen=seen)
        exact = q.double() @ e.double().T
        exact[rows, seen.ids] = -torch.inf
        best = exact.topk(K).values
        torch.testing.assert_close(ours.scores.double(), best, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(exact.gather(1, ours.ids), best, rtol=1e-5, atol=1e-4)

    rivals: dict[str, Callable[[], object]] = {
        "ours": lambda: catalog_topk(q, e, K, seen=seen),
        "dense + mask + topk": dense,
    }
    return Case(f"catalog_topk k={K} B={b} V={v} D={d}, {SEEN} seen items a row", rivals, gate)


def cases() -> list[Case]:
    return [case(*shape) for shape in SHAPES]


@pytest.mark.parametrize("rival", ["ours", "dense + mask + topk"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_catalog_topk(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(*shape)
    made.gate()
    benchmark(made.rivals[rival])
