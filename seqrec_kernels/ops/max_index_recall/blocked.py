"""The largest of one column, piece by piece: torch only, any device.

A number and its item are one int64 key (``ops/scoring.py``), whose order is (number descending, id
ascending). The n best keys so far and those of the next ``max(WIDTH, 2 n)`` items give the n best
of both: every item becomes a key once, and a call holds O(WIDTH + n) of them, whatever V is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.max_index_recall.reference import best_column
from seqrec_kernels.ops.scoring import from_keys, order_keys

__all__ = ["forward", "unsupported"]

ROWS, WIDTH = 2**14, 2**18  # queries summed and items looked at in one go; tests make them tiny
_NONE = -(2**63)  # the key of no item, below those of -inf


def forward(queries: Tensor, items: Tensor, n: int, first_item: int) -> Tensor:
    """Ids ``[n]``, largest first, ties by lowest id."""
    batch, depth = queries.shape
    device = queries.device
    if not depth:
        return torch.full((n,), -1, device=device)
    mean = torch.zeros(depth, dtype=torch.float64, device=device)
    for top in range(0, batch, ROWS):
        mean += queries[top : top + ROWS].sum(0, dtype=torch.float64)
    column, known = best_column(mean / batch if batch else mean * torch.nan, queries.dtype)

    best = torch.full((n,), _NONE, device=device)
    width = max(WIDTH, 2 * n)
    for start in range(first_item, items.shape[0], width):
        part = items[start : start + width]
        values = part.gather(1, column.expand(part.shape[0], 1))[:, 0].float()
        ids = torch.arange(start, start + part.shape[0], device=device)
        keys = order_keys(values, ids).masked_fill_(values.isnan(), _NONE)
        best = torch.cat((best, keys)).topk(n)[0]
    return from_keys(best)[1].masked_fill_((best == _NONE) | ~known, -1)
