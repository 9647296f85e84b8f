"""Little inputs of the operators that rank, such that an oracle can score them on its own."""

from __future__ import annotations

import random

import oracles
import torch
from torch import Tensor

from seqrec_kernels import Rank, SeenItems, catalog_rank


def whole(rows: int, width: int) -> Tensor:
    """Small whole numbers: every product is exact, so an oracle may score on its own; many ties."""
    return torch.randint(-2, 3, (rows, width)).float()


def random_seen(batch: int, items: int, most: int = 60) -> list[list[int]]:
    """Lists in any order, with repeats and empty ones among them."""
    return [[random.randrange(items) for _ in range(random.randrange(most))] for _ in range(batch)]


def rank_counts_every_comparison(
    shape: tuple[int, int, int], rule: str, slots: int | None, most: int
) -> None:
    """`catalog_rank`, every comparison counted; seen items are "free", "excluded" or "scored".

    Args:
        shape: rows, items, width.
        slots: targets of a row; None: the targets have one dimension.
        most: items a row has seen.
    """
    random.seed(1)
    b, v, d = shape
    for first in {0, min(3, v - 1)}:
        q, e, bias = whole(b, d), whole(v, d), torch.randint(-1, 2, (v,)).float()
        y = torch.randint(first, v, (b,) if slots is None else (b, slots))
        y[torch.rand(y.shape) < 0.2] = -1
        lists = random_seen(b, v, most)
        seen = None if rule == "free" else SeenItems.from_lists(lists)
        score = 0.0 if rule == "scored" else None
        ours = catalog_rank(q, e, y, item_bias=bias, first_item=first, seen=seen, seen_score=score)
        met = None if seen is None else lists
        counts_every_comparison(ours, (q, e, bias), y, first, met, score)


def counts_every_comparison(
    found: Rank,
    table: tuple[Tensor, Tensor, Tensor],
    targets: Tensor,
    first: int,
    seen: list[list[int]] | None,
    score: float | None,
) -> None:
    """Fail unless `found` is what comparing each target with each candidate gives.

    Args:
        found: on the CPU.
        table: queries [B, D], items [V, D] and bias [V], whole numbers.
        targets: int64 [B] or [B, T].
        first: the first item that is a candidate.
        seen: of each row, or None; `score` stands in for theirs, None: they are left out.
    """
    queries, items, bias = table
    scores = (queries.double() @ items.double().T + bias).tolist()
    met = None if seen is None else [set(row) for row in seen]
    rows = targets.view(len(queries), -1)
    greater, equal = oracles.rank(scores, rows.tolist(), first, met, score)
    assert found.greater.dtype == found.equal.dtype == torch.int64
    assert found.greater.shape == found.equal.shape == targets.shape
    assert found.greater.view_as(rows).tolist() == greater
    assert found.equal.view_as(rows).tolist() == equal
