"""The best k items in C++ on the CPU; the arithmetic is in csrc/cpu/catalog_topk.cpp.

Every query keeps the k best keys so far and looks only at scores above the worst of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import from_first, unsupported
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
    items, item_bias, parts = from_first(items, item_bias, first_item, seen)
    scores = queries.new_empty((queries.shape[0], k), dtype=torch.float32)
    ids = queries.new_empty((queries.shape[0], k), dtype=torch.int64)
    torch.ops.seqrec_native.topk(
        queries.detach(), items, item_bias, first_item, *parts, scores, ids
    )
    return scores, ids
