"""The contrastive losses, dense and readable: the oracle, the baseline, and float64.

Plain differentiable torch on ``[R, K]`` matrices, so it also has the second derivatives the fast
implementations leave out. The formulas stand in ``problem.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.contrast.problem import LEAST_SQUARE, Problem

__all__ = ["contrast", "mix_ratios", "unsupported"]


def contrast(problem: Problem) -> Tensor:
    """The loss of ``problem``: float32, float64 for float64."""
    dtype = torch.float64 if problem.anchors.dtype == torch.float64 else torch.float32
    anchors, positives, negatives = (t.to(dtype) for t in problem[:3])
    official = problem.form == "official" or problem.focal_scale is None

    def weight(similarity: Tensor) -> Tensor | float:
        if problem.focal_scale is None:
            return 1.0
        return torch.tanh(similarity / problem.focal_scale)

    def negative_logit(similarity: Tensor) -> Tensor:
        if official:
            return similarity * (weight(similarity) + problem.margin) / problem.temperature
        return (similarity * weight(similarity) + problem.margin) / problem.temperature

    similarity = (anchors * positives).sum(1, keepdim=True)
    positive = similarity * weight(similarity) / problem.temperature
    similarity = anchors @ negatives.T
    left_out = torch.zeros_like(similarity, dtype=torch.bool)
    if problem.anchor_ids is not None and problem.negative_ids is not None:
        left_out = problem.anchor_ids[:, None] == problem.negative_ids
    logits = [positive, negative_logit(similarity).masked_fill(left_out, -torch.inf)]
    if problem.noise is not None:
        logits.append(negative_logit(anchors @ problem.noise.to(dtype).T))
    if problem.mix_weight > 0:
        mixed = _mixed(problem, anchors, negatives)
        if official:
            logit = negative_logit(mixed.stopped)
        else:
            logit = mixed.stopped * weight(mixed.whole) / problem.temperature
        block_weight = torch.tensor(problem.mix_weight, dtype=dtype, device=logit.device)
        logits.append((logit + block_weight.log()).masked_fill(left_out, -torch.inf))
    losses = torch.cat(logits, 1).logsumexp(1) - positive[:, 0]
    if problem.reduction == "none":
        return losses
    return losses.sum() / (max(losses.shape[0], 1) if problem.reduction == "mean" else 1)


class _Mixed(NamedTuple):
    """Similarities of anchors with the mixed negatives, ``[R, K]``: equal in value."""

    stopped: Tensor  # the mixed negative is a constant
    whole: Tensor  # it is a function of both its parents


def _mixed(problem: Problem, anchors: Tensor, negatives: Tensor) -> _Mixed:
    a, unit_a = _normed(anchors)
    b, unit_b = _normed(negatives)
    mix = mix_ratios(problem, anchors)
    alpha = torch.where(a == 0, 0, mix)
    beta = torch.where(b.T == 0, 0, 1 - mix)
    cosine = unit_a @ unit_b.T
    square = alpha * alpha + beta * beta + 2 * alpha * beta * cosine
    directed = square >= LEAST_SQUARE
    inverse = torch.where(directed, torch.where(directed, square, 1).rsqrt(), 0)  # 1 / D
    along = (anchors * unit_a.detach()).sum(1, keepdim=True)  # a_r . unit(a_r)
    stopped = (alpha * b.T * inverse).detach() * along
    stopped = stopped + (beta * inverse).detach() * (anchors @ negatives.detach().T)
    whole = a * b.T * (alpha + beta * cosine) * inverse
    return _Mixed(stopped, whole)


def _normed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Norms ``[N, 1]`` and unit vectors; both 0, with zero gradient, for a row of zeros.

    Rows are scaled by their largest entry first, so that the squares of tiny ones do not vanish.
    """
    if rows.shape[1] == 0:
        return rows.sum(1, keepdim=True), rows
    largest = rows.detach().abs().amax(1, keepdim=True)
    scale = torch.where(largest == 0, 1, largest)
    scaled = rows / scale
    square = (scaled * scaled).sum(1, keepdim=True)
    norm = torch.where(largest == 0, 1, square).sqrt()
    return torch.where(largest == 0, 0, norm * scale), scaled / norm


def mix_ratios(problem: Problem, anchors: Tensor) -> Tensor:
    """The share of the anchor in every pair's mixed negative, ``[R, K]`` in the anchors' dtype."""
    rows = torch.arange(anchors.shape[0], device=anchors.device)[:, None]
    columns = torch.arange(problem.negatives.shape[0], device=anchors.device)
    low, high = problem.mix_low, problem.mix_high
    if low == high:
        return anchors.new_full((rows.shape[0], columns.shape[0]), low)
    drawn = philox.uniform(problem.seed, philox.STREAM_MIX, columns, rows)
    return low + (high - low) * drawn.to(anchors.dtype)
