"""The sampled losses, dense and readable: the oracle, the baseline, and float64.

Plain differentiable torch that gathers the ``[M, N, D]`` negatives, so it also has the second
derivatives the fast implementations leave out. The formulas stand in ``problem.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.sampled.problem import Problem, part_of, reduced

__all__ = ["sampled", "unsupported"]


def sampled(problem: Problem) -> Tensor:
    """The loss of ``problem``: float32, float64 for float64."""
    dtype = torch.float64 if problem.queries.dtype == torch.float64 else torch.float32
    part = part_of(problem)
    queries, items = problem.queries.to(dtype), problem.items.to(dtype)
    # a row that does not count may hold anything
    queries = torch.where(part.counts[:, None], queries, 0)
    gathered = items[part.negatives]
    positive = (queries * items[part.positives]).sum(1) / problem.temperature
    if problem.shared:
        negative = queries @ gathered.T / problem.temperature
    else:
        negative = torch.einsum("md,mnd->mn", queries, gathered) / problem.temperature
    if problem.log_q is not None:
        positive = positive - problem.log_q[part.positives]
        negative = negative - problem.log_q[part.negatives]
    losses = torch.where(part.counts, _losses(problem, positive, negative, part.kept), 0)
    losses = losses + torch.where(part.wrong, torch.nan, 0.0)  # the row's gradients stay
    return reduced(problem, losses, part.counts.to(dtype))[0]


def _losses(problem: Problem, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
    """A loss a row, anything finite where nothing is kept."""
    if problem.loss == "softmax":
        logits = torch.cat([positive[:, None], negative.masked_fill(~kept, -torch.inf)], 1)
        return logits.logsumexp(1) - positive
    if problem.loss == "bpr":
        terms = torch.where(kept, -logsigmoid(positive[:, None] - negative), 0)
        return terms.sum(1) / kept.sum(1).clamp(min=1)
    terms = torch.where(kept, -logsigmoid(-negative), 0)
    return terms.sum(1) - problem.beta * logsigmoid(positive)
