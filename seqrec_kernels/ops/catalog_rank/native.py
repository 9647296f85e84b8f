"""Exact ranks in C++ on the CPU; the arithmetic is in csrc/cpu/catalog_rank.cpp.

Scores are chains of multiply-adds, the same for every pair wherever it stands, so equal item rows
score equal bits without any padding, and the counts do not depend on the number of threads. Where
the processor multiplies pairs of bfloat16 (AVX512-BF16), bfloat16 scores are chains of pairs; their
products are exact, sums are float32, and subnormal numbers count as zero.
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
    targets: Tensor,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
    seen_score: float | None,
) -> tuple[Tensor, Tensor]:
    """``greater`` and ``equal``, int64 in the shape of ``targets``."""
    wanted = targets if targets.dim() == 2 else targets[:, None]
    items, item_bias, parts = from_first(items, item_bias, first_item, seen)
    greater, equal = wanted.new_empty(wanted.shape), wanted.new_empty(wanted.shape)
    torch.ops.seqrec_native.rank(
        queries.detach(), items, wanted.contiguous(), item_bias, first_item, *parts, seen_score,
        greater, equal
    )  # fmt: skip
    return greater.view(targets.shape), equal.view(targets.shape)
