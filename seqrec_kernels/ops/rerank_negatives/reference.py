"""Every candidate's score out of the dense score matrix, sorted: the oracle, and float64."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.rerank_negatives.problem import Problem, drawn
from seqrec_kernels.ops.scoring import dense_scores, seen_entries

__all__ = ["forward", "unsupported"]


def forward(problem: Problem) -> Tensor:
    """The id each row draws, ``[B]``."""
    queries, items, first = problem.queries, problem.items, problem.first_item
    ids = problem.slots()
    inside = (ids >= first) & (ids < items.shape[0])
    gone = ((ids != -1) & ~inside).any(1)
    ids = torch.where(inside, ids, -1).sort(1).values
    allowed = ids >= 0
    places = ids.clamp(min=0)
    scores = dense_scores(queries, items, None, 0).gather(1, places)
    allowed &= ~scores.isnan()
    if problem.forbidden is not None:
        rows, found, wrong = seen_entries(problem.forbidden, ids.shape[0], 0, items.shape[0])
        met = torch.zeros(ids.shape[0], items.shape[0], dtype=torch.bool, device=ids.device)
        met[rows, found] = True
        allowed &= ~met.gather(1, places)
        gone |= wrong
    if problem.drop:
        allowed[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    # ids stand in order, and both sorts leave alone what ties
    worst_last = torch.where(allowed, scores, -torch.inf)
    order = worst_last.sort(dim=1, descending=True, stable=True).indices
    there = allowed.gather(1, order).to(torch.int8)
    order = order.gather(1, there.sort(dim=1, descending=True, stable=True).indices)
    return drawn(problem, ids.gather(1, order), allowed.sum(1)).masked_fill(gone, -1)
