"""What the sampled losses ask for, as every implementation takes it, and what it means.

**Logits.** ``a_m = q_m . e_pos / t - log_q_pos`` and ``b_mn = q_m . e_neg / t - log_q_neg``, the
correction only where ``log_q`` is given. A negative *takes part* when it is not -1 and not (with
``drop_hits``) the row's positive; a row *counts* when it has a positive and a negative that takes
part. Sums and the mean over n are over those that take part; repeated ids are several negatives.

    "bce"      beta softplus(-a) + sum_n softplus(b_n)
    "bpr"      mean_n softplus(b_n - a)
    "softmax"  log(e^a + sum_n e^{b_n}) - a  =  softplus(l - a),   l = log sum_n e^{b_n}

The softplus forms are exact where ``log(sigmoid(x) + 1e-24)`` saturates, and small losses keep
their digits. With ``s = sigmoid`` the slopes are

    "bce"      d/da = -beta s(-a)             d/db_n = s(b_n)
    "bpr"      d/da = -sum_n d/db_n           d/db_n = s(b_n - a) / number of n
    "softmax"  d/da = -sum_n d/db_n           d/db_n = e^{b_n - l} s(l - a)

and with ``w`` a row's slopes times its upstream gradient, over its ids v (the positive first),

    dq_m = 1/t sum_v w_v e_v,    de_v += w_v q_m / t,    dlog_q_v -= w_v.

**Ids out of range.** Such a slot takes no part, and makes the loss of every row it stands in NaN.

Sources: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009),
section 4; Bengio and Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural
Probabilistic Language Model" (2008), for the corrected softmax; Petrov and Macdonald, "gSASRec:
Reducing Overconfidence in Sequential Recommendation Trained with Negative Sampling" (RecSys 2023),
equation 8, for ``beta``: ``-log s(a)^beta = beta softplus(-a)``, which needs no float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LOSSES", "Part", "Problem", "part_of", "reduced"]

LOSSES = ("bce", "bpr", "softmax")


class Problem(NamedTuple):
    """One call of the family, checked; all three public losses are this one problem."""

    queries: Tensor  # [M, D]
    items: Tensor  # [V, D], V at least 1
    positives: Tensor  # int64 [M]
    negatives: Tensor  # int64 [M, N], or [N] for every row
    log_q: Tensor | None  # [V]
    loss: str  # of LOSSES
    temperature: float
    beta: float  # 1 but for "bce"
    drop_hits: bool
    reduction: str  # "mean" | "sum" | "none"

    @property
    def shared(self) -> bool:
        """Whether all rows have the same negatives."""
        return self.negatives.dim() == 1


class Part(NamedTuple):
    """What of some rows takes part."""

    positives: Tensor  # int64 [R], 0 where there is none in range
    negatives: Tensor  # int64 [R, N] or [N], 0 where the id is empty or out of range
    kept: Tensor  # bool [R, N]: takes part
    counts: Tensor  # bool [R]
    wrong: Tensor  # bool [R]: has an id out of range


def part_of(problem: Problem, top: int = 0, end: int | None = None) -> Part:
    """The rows ``top .. end`` of ``problem``, with ids that can be looked up."""
    positives = problem.positives[top:end]
    negatives = problem.negatives if problem.shared else problem.negatives[top:end]
    items = problem.items.shape[0]
    there = (positives >= 0) & (positives < items)
    inside = (negatives >= 0) & (negatives < items)
    wrong = ((negatives != -1) & ~inside).any(-1) | ((positives != -1) & ~there)
    kept = inside.expand(positives.shape[0], negatives.shape[-1])
    if problem.drop_hits:
        kept = kept & (negatives != positives[:, None])
    return Part(
        torch.where(there, positives, 0),
        torch.where(inside, negatives, 0),
        kept,
        there & kept.any(1),
        wrong,
    )


def reduced(problem: Problem, losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The reduced loss, and d(reduced loss) / d(loss of a row that counts), 0-d.

    Args:
        losses: ``[M]``, 0 for a row that does not count.
        counts: ``[M]``, 1 for one that does and 0 for others.
    """
    one = losses.new_ones(())
    if problem.reduction == "none":
        return losses, one
    scale = counts.sum().clamp(min=1).reciprocal() if problem.reduction == "mean" else one
    return losses.sum() * scale, scale
