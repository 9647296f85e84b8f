"""Fused losses and retrieval operators for recommenders, for plain PyTorch.

Losses never build a ``batch x catalogue`` tensor and ranking never builds a score matrix. Importing
this package needs torch alone: no compiler, no triton, no GPU.
"""

from __future__ import annotations

from seqrec_kernels import nn
from seqrec_kernels.backend import backend
from seqrec_kernels.ops.catalog_cross_entropy import catalog_cross_entropy
from seqrec_kernels.ops.catalog_rank import catalog_rank
from seqrec_kernels.ops.catalog_rank.metrics import rank_metrics
from seqrec_kernels.ops.catalog_topk import catalog_topk
from seqrec_kernels.ops.contrast import (
    ascend_noise,
    focal_info_nce,
    hard_negative_info_nce,
    info_nce,
)
from seqrec_kernels.ops.jagged_attention import jagged_attention
from seqrec_kernels.ops.max_index_recall import max_index_recall
from seqrec_kernels.ops.rerank_negatives import rerank_negatives
from seqrec_kernels.ops.sampled import bce_loss, bpr_loss, sampled_softmax_loss
from seqrec_kernels.types import Rank, SeenItems, TopK

__all__ = [
    "Rank",
    "SeenItems",
    "TopK",
    "ascend_noise",
    "backend",
    "bce_loss",
    "bpr_loss",
    "catalog_cross_entropy",
    "catalog_rank",
    "catalog_topk",
    "focal_info_nce",
    "hard_negative_info_nce",
    "info_nce",
    "jagged_attention",
    "max_index_recall",
    "nn",
    "rank_metrics",
    "rerank_negatives",
    "sampled_softmax_loss",
]
