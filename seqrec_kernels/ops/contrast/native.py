"""The contrastive losses in C++ on the CPU; what is computed is in csrc/cpu/contrast.cpp.

Two plans. *One pass* keeps a coefficient for every pair of a block of 64 anchors until the block's
sums are known, and forms the gradients in the forward; it is for a mean or sum loss where such a
block fits the workspace. *Recompute* is for everything else: a shift and a sum of each row are
saved, and every pair is formed again. The choice depends on shapes alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import unsupported
from seqrec_kernels.ops.contrast.ascend import Ascent
from seqrec_kernels.ops.contrast.problem import Problem

__all__ = ["ascend", "backward", "forward", "saved_shapes", "unsupported"]

# bytes: as many blocks of 64 anchors as fit are worked at a time
WORKSPACE = 2**24
_LANES = 64


def _one_pass(problem: Problem, needs: list[bool]) -> bool:
    if problem.reduction == "none" or not any(needs):
        return False
    kept = problem.negatives.shape[0] * (2 if problem.form == "paper" else 1) if needs[2] else 0
    if needs[3] and problem.noise is not None:
        kept += problem.noise.shape[0]
    return kept * _LANES * 4 <= WORKSPACE


def _upstream(problem: Problem, grad: Tensor | None) -> Tensor:
    """What multiplies the gradient of each row's loss, ``[R]``."""
    rows = problem.anchors.shape[0]
    scale = 1 / max(rows, 1) if problem.reduction == "mean" else 1.0
    if grad is None:
        return problem.anchors.new_full((rows,), scale, dtype=torch.float32)
    return (grad.to(torch.float32) * scale).expand(rows).contiguous()


def _run(
    problem: Problem,
    upstream: Tensor | None,
    losses: Tensor | None,
    state: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Writes the losses, if given, and the state, which it reads without them; returns the
    float32 gradients wanted."""
    inputs = [problem.anchors, problem.positives, problem.negatives, problem.noise]
    # without rows the library writes nothing
    new = problem.anchors.new_empty if len(problem.anchors) else problem.anchors.new_zeros
    parts = [
        new(t.shape, dtype=torch.float32) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    ids = [None if t is None else t.contiguous() for t in problem[4:6]]
    torch.ops.seqrec_native.contrast(
        *(None if t is None else t.detach() for t in inputs), *ids, problem.seed,
        problem.temperature, problem.focal_scale, problem.margin, problem.mix_low,
        problem.mix_high, problem.mix_weight, problem.form == "paper", upstream, WORKSPACE,
        losses, state, *parts
    )  # fmt: skip
    return [part for part in parts if part is not None]


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss and what the backward needs: the finished gradients, or shifts and sums."""
    rows = problem.anchors.shape[0]
    losses = problem.anchors.new_empty((rows,), dtype=torch.float32)
    if _one_pass(problem, needs):
        saved = _run(problem, _upstream(problem, None), losses, None, needs)
    else:
        saved = [losses.new_empty((2, rows))] if any(needs) else []
        _run(problem, None, losses, saved[0] if saved else None, [False] * 4)
    if problem.reduction == "none":
        return losses, saved
    return losses.sum() / (max(rows, 1) if problem.reduction == "mean" else 1), saved


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order anchors, positives, negatives, noise."""
    wanted = [t for t, need in zip(problem[:4], needs, strict=True) if need and t is not None]
    if _one_pass(problem, needs):
        found = [part * grad for part in saved]
    else:
        found = _run(problem, _upstream(problem, grad), None, saved[0], needs)
    return [part.to(t.dtype) for part, t in zip(found, wanted, strict=True)]


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32: the registration's fake mirrors them."""
    if not any(needs):
        return []
    if not _one_pass(problem, needs):
        return [(2, problem.anchors.shape[0])]
    inputs = zip(problem[:4], needs, strict=True)
    return [tuple(t.shape) for t, need in inputs if need and t is not None]


def ascend(ascent: Ascent) -> Tensor:
    """The moved noise, by csrc/cpu/ascend_noise.cpp."""
    a, p, n, noise = (t.detach() for t in ascent[:4])
    # the part of each anchor's log-sum-exp that does not move, less its positive
    still = Problem(
        a, p, n, None, ascent.anchor_ids, ascent.negative_ids, torch.zeros((), dtype=torch.int64),
        ascent.temperature, None, 0.0, 0.0, 0.0, 0.0, "official", "none"
    )  # fmt: skip
    losses, _ = forward(still, [False] * 4)
    moved = noise.new_empty(noise.shape, dtype=torch.float32)
    torch.ops.seqrec_native.ascend_noise(
        a, p, losses, noise, ascent.temperature, ascent.steps, ascent.step_size, moved
    )
    return moved.to(noise.dtype)
