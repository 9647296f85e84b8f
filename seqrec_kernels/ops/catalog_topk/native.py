"""The best k items, compiled: csrc/cpu/catalog_topk.cpp on the CPU, selection.py on CUDA.

On the CPU every query keeps the k best keys so far and looks only at scores above the worst of
them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import native
from seqrec_kernels.native import from_first
from seqrec_kernels.ops.catalog_topk import selection
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate: None where there is a library for the device, else why not."""
    return (selection if queries.is_cuda else native).unsupported(queries, items)


def forward(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
) -> tuple[Tensor, Tensor]:
    """Scores and ids ``[B, k]``, best first, ties by lowest id."""
    if queries.is_cuda:
        return selection.forward(queries, items, k, item_bias, first_item, seen)
    items, item_bias, parts = from_first(items, item_bias, first_item, seen)
    scores = queries.new_empty((queries.shape[0], k), dtype=torch.float32)
    ids = queries.new_empty((queries.shape[0], k), dtype=torch.int64)
    torch.ops.seqrec_native.topk(
        queries.detach(), items, item_bias, first_item, *parts, scores, ids
    )
    return scores, ids
