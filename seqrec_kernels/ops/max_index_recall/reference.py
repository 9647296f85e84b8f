"""The whole column sorted: the oracle, the baseline, and float64."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import anywhere as unsupported

__all__ = ["best_column", "forward", "unsupported"]


def forward(queries: Tensor, items: Tensor, n: int, first_item: int) -> Tensor:
    """Ids ``[n]``, largest first, ties by lowest id."""
    column, known = best_column(queries.double().mean(0), queries.dtype)
    if not items.shape[1]:
        return torch.full((n,), -1, device=queries.device)
    values = items[first_item:].index_select(1, column)[:, 0]
    missing = values.isnan()
    order = torch.where(missing, -torch.inf, values).sort(descending=True, stable=True).indices
    order = order[missing[order].sort(stable=True).indices]  # NaN below -inf
    return torch.where(missing[order] | ~known, -1, order + first_item)[:n]


def best_column(mean: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The place of the largest mean, int64 ``[1]``, and whether any is a number, bool ``[1]``.

    Args:
        mean: float64 ``[D]``; what is compared is rounded to float32, unless ``dtype`` is float64.
    """
    if not mean.shape[0]:
        return mean.new_zeros(1, dtype=torch.int64), mean.new_zeros(1, dtype=torch.bool)
    mean = mean if dtype == torch.float64 else mean.float()
    known = ~mean.isnan()
    largest = torch.where(known, mean, -torch.inf).max()
    # argmax of what is 0 or 1 is the first 1
    column = (known & (mean == largest)).to(torch.int8).argmax(0, keepdim=True)
    return column, known.any(0, keepdim=True)
