"""Noise negatives moved uphill: towards what the loss finds hardest.

**Mathematics.** With the logits ``x_re = a_r . noise_e / t`` of noise and the log-sum-exp ``l_r``
of all that row r is contrasted with (its positive, the kept negatives, the noise), the gradient of
``info_nce`` with respect to noise row e is a positive multiple of

    d_e = sum_r exp(x_re - l_r) a_r

Only its direction is used, so the largest exponent of each e is taken out before the exponential:

    w_re = exp(x_re - l_r - max over r' of (x_r'e - l_r'))

Where a plain gradient underflows (anchors of norm 8 leave softmax weights of 1e-20 and less) this
one has a term of weight 1. A direction that is 0 or not finite leaves its noise row where it is.
Positives and negatives do not move, so their part of ``l_r`` is computed once.

Source: the code of FENRec (Huang et al., AAAI 2025), which ascends before each loss; the scale-free
form is derived here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Ascent", "blocked", "reference"]

OUT = -1.7e38  # the logit of a pair left out: below every other, yet finite
FLOATS = 2**17  # of the workspace, [rows, K or E], on a CPU ...
CUDA = 64  # ... and how many times as much of it on a GPU


class Ascent(NamedTuple):
    """One call, checked."""

    anchors: Tensor  # [R, D]
    positives: Tensor  # [R, D]
    negatives: Tensor  # [K, D]
    noise: Tensor  # [E, D]
    anchor_ids: Tensor | None  # int64 [R]; both or neither
    negative_ids: Tensor | None  # int64 [K]
    temperature: float
    steps: int
    step_size: float


def reference(ascent: Ascent) -> Tensor:
    """The moved noise, through dense ``[R, K]`` and ``[R, E]`` matrices."""
    dtype = torch.float64 if ascent.noise.dtype == torch.float64 else torch.float32
    anchors, positives, negatives, noise = (t.to(dtype) for t in ascent[:4])
    logits = anchors @ negatives.T / ascent.temperature
    if ascent.anchor_ids is not None and ascent.negative_ids is not None:
        logits[ascent.anchor_ids[:, None] == ascent.negative_ids] = -torch.inf
    positive = (anchors * positives).sum(1, keepdim=True) / ascent.temperature
    still = torch.cat([positive, logits], 1).logsumexp(1, keepdim=True)
    for _ in range(ascent.steps if anchors.shape[0] > 0 else 0):
        logits = anchors @ noise.T / ascent.temperature
        lse = torch.logaddexp(still, logits.logsumexp(1, keepdim=True))
        exponents = logits - lse
        weights = (exponents - exponents.amax(0)).exp()
        noise = _moved(noise, weights.T @ anchors, ascent.step_size)
    return _new(noise, ascent)


def blocked(ascent: Ascent) -> Tensor:
    """The moved noise, through blocks of anchor rows and one workspace."""
    anchors, positives, negatives, noise = (t.to(torch.float32) for t in ascent[:4])
    scaled = anchors / ascent.temperature
    floats = FLOATS * (CUDA if anchors.is_cuda else 1)
    widest = max(negatives.shape[0], noise.shape[0], 1)
    rows = max(1, min(anchors.shape[0], floats // widest))
    work = anchors.new_empty(rows * widest)

    def logits(top: int, columns: Tensor) -> Tensor:
        part = scaled[top : top + rows]
        block = work[: part.shape[0] * columns.shape[0]].view(part.shape[0], columns.shape[0])
        return torch.mm(part, columns.t(), out=block)

    still = (scaled * positives).sum(1)
    for top in range(0, anchors.shape[0] if negatives.shape[0] > 0 else 0, rows):
        block = logits(top, negatives)
        if ascent.anchor_ids is not None and ascent.negative_ids is not None:
            equal = ascent.anchor_ids[top : top + rows, None] == ascent.negative_ids
            block.masked_fill_(equal, OUT)
        part = still[top : top + rows]
        torch.logaddexp(part, block.logsumexp(1), out=part)

    for _ in range(ascent.steps if noise.shape[0] > 0 else 0):
        direction = torch.zeros_like(noise)
        highest = noise.new_full(noise.shape[:1], -torch.inf)
        for top in range(0, anchors.shape[0], rows):
            block = logits(top, noise)
            lse = torch.logaddexp(still[top : top + rows], block.logsumexp(1))
            block -= lse[:, None]
            before, highest = highest, torch.maximum(highest, block.amax(0))
            block.sub_(highest).exp_()
            direction *= (before - highest).exp_()[:, None]
            direction.addmm_(block.t(), anchors[top : top + rows])
        noise = _moved(noise, direction, ascent.step_size)
    return _new(noise, ascent)


def _moved(noise: Tensor, direction: Tensor, step_size: float) -> Tensor:
    # float64 holds the squares of any float32
    norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True, dtype=torch.float64)
    norm = norm.to(direction.dtype)
    moves = (norm > 0) & norm.isfinite()
    return torch.where(moves, noise + step_size * (direction / norm), noise)


def _new(noise: Tensor, ascent: Ascent) -> Tensor:
    """The result in the caller's dtype, never the caller's tensor."""
    return noise.to(ascent.noise.dtype, copy=noise is ascent.noise)
