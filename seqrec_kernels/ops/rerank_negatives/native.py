"""One candidate a row, drawn among its best, compiled: csrc/cpu/rerank_negatives.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import unsupported
from seqrec_kernels.ops.rerank_negatives.problem import Problem

__all__ = ["forward", "unsupported"]


def forward(problem: Problem) -> Tensor:
    """The id each row draws, ``[B]``."""
    queries, items, candidates, shared, forbidden, top_m, seed, drop, first_item = problem
    lists = (None, None, None) if forbidden is None else forbidden
    offsets, ids, rows = (None if part is None else part.contiguous() for part in lists)
    found = queries.new_empty((queries.shape[0],), dtype=torch.int64)
    torch.ops.seqrec_native.rerank_negatives(
        queries.detach(), items.detach(), candidates, shared,
        offsets, ids, rows, top_m, seed, drop, first_item, found,
    )  # fmt: skip
    return found
