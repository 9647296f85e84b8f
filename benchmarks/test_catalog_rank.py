"""Exact ranks with seen items left out, against the dense score matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from seqrec_kernels import Rank, SeenItems, catalog_rank

from ._common import Case, benchmarked, implementations, is_ours

SHAPES = {
    "tiny": [(24, 300, 16)],
    "paper": [(2048, 12_101, 64), (1024, 50_000, 64)],
    "wide": [(2048, 12_101, 32), (2048, 12_101, 128), (2048, 12_101, 256)],
    "large": [(1024, 100_000, 64), (1024, 100_000, 256)],
    "million": [(256, 1_000_000, 64)],
}
K, SEEN = 20, 8  # K of the usual metrics; items a user has met


def slack(q: Tensor, e: Tensor, exact: Tensor, ours: bool) -> Tensor:
    """How far two computed scores of a row may be off together: ``[B, 1]``, float64.

    Rounding of float32 sums (twice over, for products in three TF32 parts); a peer's scores are
    rounded to the inputs' dtype on top, which takes bfloat16 ranks apart.
    """
    longest = e.float().norm(dim=1).max().double()
    allowed = q.shape[1] * 2.0**-22 * q.double().norm(dim=1, keepdim=True) * longest
    if not ours and q.dtype == torch.bfloat16:
        allowed += 2.0**-7 * exact.nan_to_num(neginf=0.0).abs().amax(1, keepdim=True)
    return allowed


def case(
    shape: tuple[int, int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    b, v, d = shape
    torch.manual_seed(0)
    q, e = (torch.randn(n, d).to(device, dtype) for n in (b, v))
    y = torch.randint(v, (b,)).to(device)
    seen = SeenItems.from_lists(torch.randint(v, (b, SEEN)).tolist(), device)
    rows = torch.arange(b, device=device).repeat_interleave(SEEN)

    def scores() -> Tensor:
        matrix = q @ e.T
        own = matrix.gather(1, y[:, None])
        matrix[rows, seen.ids] = -torch.inf
        return matrix.scatter_(1, y[:, None], own)

    def topk() -> Tensor:
        return (torch.topk(scores(), K).indices == y[:, None]).any(1)

    def count() -> Tensor:
        matrix = scores()
        return (matrix > matrix.gather(1, y[:, None])).sum(1)

    @cache
    def exact() -> tuple[Tensor, Tensor]:
        """float64 scores of the candidates, and of the targets."""
        matrix = q.double() @ e.double().T
        own = matrix.gather(1, y[:, None])
        matrix[rows, seen.ids] = -torch.inf
        return matrix.scatter_(1, y[:, None], -torch.inf), own

    def gate(rival: str) -> None:
        found = rivals[rival]()
        others, own = exact()
        allowed = slack(q, e, others, is_ours(rival))
        least, most = ((others > own + sign * allowed).sum(1) for sign in (1, -1))
        if isinstance(found, Rank):
            found = found.greater
        assert isinstance(found, Tensor)
        if found.dtype == torch.bool:  # in the first K or not
            wrong = (found & (least >= K)) | (~found & (most < K))
        else:
            wrong = (found < least) | (found > most)
        assert not wrong.any(), f"{int(wrong.sum())} of {b} ranks are beyond rounding"

    runs, rivals, left_out = implementations(
        "catalog_rank", q, e, lambda: catalog_rank(q, e, y, seen=seen)
    )
    rivals |= {f"dense + mask + topk({K})": topk, "dense + mask + count": count}
    return Case(
        "catalog_rank",
        f"B={b} V={v} D={d}, {SEEN} seen items a row",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=2 * b * v * d,
        bytes=(b + v) * d * dtype.itemsize + 8 * (b * (SEEN + 4)),
    )


@pytest.mark.parametrize(
    "rival", ["ours", "seqrec blocked", f"dense + mask + topk({K})", "dense + mask + count"]
)
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_catalog_rank(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
