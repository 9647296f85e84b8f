"""The best k items from the dense score matrix: the oracle, the baseline, and float64."""

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
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
) -> tuple[Tensor, Tensor]:
    """Scores and ids ``[B, k]``, best first, ties by lowest id."""
    scores = dense_scores(queries, items, item_bias, first_item)
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if seen is not None:
        rows, places, wrong = seen_entries(seen, queries.shape[0], first_item, items.shape[0])
        scores[rows, places] = -torch.inf
        scores[wrong] = -torch.inf
    best, ids = scores.sort(dim=1, descending=True, stable=True)
    best, ids = best[:, :k], ids[:, :k] + first_item
    ids = torch.where(best == -torch.inf, -1, ids)
    short = k - best.shape[1]
    best = torch.nn.functional.pad(best, (0, max(short, 0)), value=-torch.inf)
    return best, torch.nn.functional.pad(ids, (0, max(short, 0)), value=-1)
