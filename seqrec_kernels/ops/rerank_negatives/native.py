"""One candidate a row, drawn among its best: csrc/cpu/rerank_negatives.cpp, on CUDA cuda.py."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import native
from seqrec_kernels.ops.rerank_negatives import cuda
from seqrec_kernels.ops.rerank_negatives.problem import Problem

__all__ = ["forward", "unsupported"]


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate: None where there is a library for the device, else why not."""
    return (cuda if queries.is_cuda else native).unsupported(queries, items)


def forward(problem: Problem) -> Tensor:
    """The id each row draws, ``[B]``."""
    if problem.queries.is_cuda:
        return cuda.forward(problem)
    queries, items, candidates, shared, forbidden, top_m, seed, drop, first_item = problem
    lists = (None, None, None) if forbidden is None else forbidden
    offsets, ids, rows = (None if part is None else part.contiguous() for part in lists)
    found = queries.new_empty((queries.shape[0],), dtype=torch.int64)
    torch.ops.seqrec_native.rerank_negatives(
        queries.detach(), items.detach(), candidates, shared,
        offsets, ids, rows, top_m, seed, drop, first_item, found,
    )  # fmt: skip
    return found
