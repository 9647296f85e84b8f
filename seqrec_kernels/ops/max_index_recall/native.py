"""The largest of one column, compiled: csrc/cpu/max_index_recall.cpp, on CUDA cuda.py."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import native
from seqrec_kernels.ops.max_index_recall import cuda

__all__ = ["forward", "unsupported"]


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate: None where there is a library for the device, else why not."""
    return (cuda if queries.is_cuda else native).unsupported(queries, items)


def forward(queries: Tensor, items: Tensor, n: int, first_item: int) -> Tensor:
    """Ids ``[n]``, largest first, ties by lowest id."""
    if queries.is_cuda:
        return cuda.forward(queries, items, n, first_item)
    found = queries.new_empty((n,), dtype=torch.int64)
    torch.ops.seqrec_native.max_index_recall(
        queries.detach(), items.detach()[first_item:], first_item, found
    )
    return found
