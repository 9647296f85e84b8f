"""The largest of one column, compiled: csrc/cpu/max_index_recall.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import unsupported

__all__ = ["forward", "unsupported"]


def forward(queries: Tensor, items: Tensor, n: int, first_item: int) -> Tensor:
    """Ids ``[n]``, largest first, ties by lowest id."""
    found = queries.new_empty((n,), dtype=torch.int64)
    torch.ops.seqrec_native.max_index_recall(
        queries.detach(), items.detach()[first_item:], first_item, found
    )
    return found
