"""R2NS's selection of a batch's negatives, recall and re-ranking, beside vectorised torch.

"keep" is the selection as it is published: repeats count, nothing is forbidden. "drop" leaves out
repeats and what the row has seen; torch leaves out what is seen only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seqrec_kernels import SeenItems, max_index_recall, rerank_negatives

from ._common import Case, benchmarked, implementations, is_ours


class Shape(NamedTuple):
    """One batch: rows, recalled and random candidates, items, width, kept ones, repeats."""

    b: int
    s: int
    c: int
    v: int
    d: int
    m: int
    repeated: str

    def __str__(self) -> str:
        return f"{self.repeated} M={self.m} N={self.s}+{self.c} B={self.b} V={self.v} D={self.d}"


SHAPES = {
    "tiny": [Shape(40, 20, 10, 300, 16, 5, "keep"), Shape(40, 20, 10, 300, 16, 5, "drop")],
    "paper": [
        Shape(1024, 100, 100, 12_101, 64, 50, "keep"),
        Shape(1024, 100, 100, 12_101, 64, 50, "drop"),
        Shape(1024, 100, 100, 12_101, 64, 5, "drop"),
    ],
    "wide": [Shape(1024, 100, 100, 12_101, 256, 50, "drop")],
    "large": [Shape(1024, 100, 100, 100_000, 64, 50, "drop")],
    "million": [Shape(1024, 100, 100, 1_000_000, 64, 50, "drop")],
}
SEEN = 9
SEED = 7


def eager(q: Tensor, e: Tensor, own: Tensor, seen: Tensor | None, count: int, m: int) -> Tensor:
    """What a training loop writes, without a loop over rows."""
    top = e[:, q.mean(0).argmax()].topk(count).indices
    scores = torch.cat((q @ e[top].T, torch.bmm(e[own], q[:, :, None])[:, :, 0]), 1)
    ids = torch.cat((top.expand(len(q), -1), own), 1)
    if seen is not None:
        scores = scores.masked_fill((ids[:, :, None] == seen[:, None, :]).any(2), -torch.inf)
    best = scores.topk(m, 1, sorted=False).indices
    drawn = torch.randint(m, (len(q), 1), device=q.device)
    return ids.gather(1, best.gather(1, drawn))[:, 0]


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    b, s, c, v, d, m, repeated = shape
    torch.manual_seed(0)
    q, e = (torch.randn(rows, d).to(device, dtype) for rows in (b, v))
    q[:, d // 2] += 1  # one column that every precision of a mean agrees on
    own, met = torch.randint(v, (b, c)).to(device), torch.randint(v, (b, SEEN)).to(device)
    drop = repeated == "drop"
    seen = met if drop else None
    lists = SeenItems.from_lists(met.tolist(), device) if drop else None

    def ours() -> Tensor:
        top = max_index_recall(q, e, s)
        return rerank_negatives(
            q, e, own, m, shared=top, forbidden=lists, repeated=repeated, seed=SEED
        )

    def gate(rival: str) -> None:
        """Each drawn one is allowed; ours are among the m best up to the rounding of a score."""
        found = rivals[rival]()
        assert isinstance(found, Tensor) and found.shape == (b,)
        column = e[:, d // 2].float()
        recalled = column[found] >= column.topk(s).values[-1]
        assert (recalled | (own == found[:, None]).any(1)).all(), "no candidate"
        assert len(found.unique()) > b // 10, "hardly any differ"
        assert not drop or not (met == found[:, None]).any(), "forbidden"
        if not is_ours(rival):
            return
        ids = torch.cat(
            (column.sort(descending=True, stable=True).indices[:s].expand(b, -1), own), 1
        )
        ids = ids.sort(1).values
        scores = (e[ids].double() @ q[:, :, None].double())[:, :, 0]
        if drop:
            gone = (ids[:, :, None] == met[:, None, :]).any(2)
            gone[:, 1:] |= ids[:, 1:] == ids[:, :-1]
            scores = scores.masked_fill(gone, -torch.inf)
        drawn = (e[found].double() * q.double()).sum(1)
        least = scores.topk(m, 1).values[:, -1]
        assert (drawn >= least - 1e-5 * d**0.5).all(), "not among the best"

    runs, rivals, left_out = implementations("rerank_negatives", q, e, ours)
    rivals["eager"] = lambda: eager(q, e, own, seen, s, m)
    if compiling:
        torch.compiler.reset()
        quick = torch.compile(eager, dynamic=False)
        rivals["torch.compile"] = lambda: quick(q, e, own, seen, s, m)
    else:
        left_out["torch.compile"] = "not on tiny shapes: compiling outlasts everything else"
    return Case(
        "rerank_negatives",
        f"with recall, {shape}",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=2 * b * (s + c) * d,
        bytes=(b + v) * d * dtype.itemsize + 8 * b * (c + 1 + SEEN * drop),
    )


@pytest.mark.parametrize("rival", ["ours", "seqrec blocked", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_rerank_negatives(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
