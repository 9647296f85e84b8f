"""Exact ranks from the dense score matrix: the oracle, the baseline, and float64."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.scoring import dense_scores, seen_entries
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]


def forward(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
    seen_score: float | None,
) -> tuple[Tensor, Tensor]:
    """``greater`` and ``equal``, int64 in the shape of ``targets``."""
    scores = dense_scores(queries, items, item_bias, first_item)
    wanted = targets if targets.dim() == 2 else targets[:, None]
    in_range = (wanted >= first_item) & (wanted < items.shape[0])
    columns = torch.where(in_range, wanted - first_item, 0)
    is_seen = torch.zeros_like(scores, dtype=torch.bool)
    if seen is not None:
        rows, places, wrong = seen_entries(seen, queries.shape[0], first_item, items.shape[0])
        in_range = in_range & ~wrong[:, None]
        is_seen[rows, places] = True
    if seen_score is not None:
        scores = torch.where(is_seen, seen_score, scores)
        is_seen = torch.zeros_like(is_seen)

    greater, equal = torch.empty_like(wanted), torch.empty_like(wanted)
    for slot in range(wanted.shape[1]):
        column = columns[:, slot, None]
        target = scores.gather(1, column)
        candidate = (~is_seen).scatter(1, column, False)
        above = torch.where(target.isnan(), True, scores > target)
        greater[:, slot] = (candidate & above).sum(1)
        equal[:, slot] = (candidate & (scores == target)).sum(1)
    greater = torch.where(in_range, greater, -1)
    equal = torch.where(in_range, equal, -1)
    return greater.view(targets.shape), equal.view(targets.shape)
