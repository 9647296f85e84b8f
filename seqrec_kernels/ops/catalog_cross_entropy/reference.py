"""Catalogue cross-entropy, dense and readable: the oracle, the baseline, and float64.

Plain differentiable torch that forms the ``[M, V]`` logits, so it also has the second derivatives
the fast implementations leave out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem, labels_of

__all__ = ["catalog_cross_entropy", "unsupported"]


def catalog_cross_entropy(problem: Problem) -> Tensor:
    """The loss of ``problem``: float32, float64 for float64."""
    dtype = torch.float64 if problem.queries.dtype == torch.float64 else torch.float32
    queries = problem.queries.to(dtype)
    items = problem.items[problem.first_item :].to(dtype)
    labels = labels_of(problem, dtype)

    logits = queries @ items.T / problem.temperature
    if problem.item_bias is not None:
        logits = logits + problem.item_bias[problem.first_item :]
    chosen = logits.gather(1, labels.columns)
    # a weight of 0 beside a logit of -inf (an item taken out) adds nothing
    chosen = torch.where(labels.weights == 0, 0, chosen)
    lse = _logsumexp(logits)
    losses = labels.mass * lse - (labels.weights * chosen).sum(1)
    losses = torch.where(labels.scale > 0, losses, 0)  # rows that do not count
    losses = torch.where(labels.wrong, torch.nan, losses)
    return losses if problem.reduction == "none" else (labels.scale * losses).sum()


def _logsumexp(logits: Tensor) -> Tensor:
    """The log-sum-exp of each row; finite, with zero gradient, where every item is taken out.

    torch's has the gradient NaN there, which a weight of 0 does not remove.
    """
    nothing = (logits == -torch.inf).all(1)
    lowest = torch.finfo(logits.dtype).min
    return torch.where(nothing, lowest, torch.where(nothing[:, None], 0, logits).logsumexp(1))
