"""How the fast implementations go through a call: in one pass, or again in the backward.

An implementation has one function, ``run``, that computes losses and, where it gets an upstream
gradient, gradients with them: both need the same item rows. *One pass* (CPU, mean or sum with a
gradient wanted): it runs in the forward with upstream gradients of 1, and the backward multiplies
what it found. *Recompute* (everything else): the forward runs it for the losses, and the backward
for the gradients.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from seqrec_kernels.ops.sampled.problem import Problem, reduced

__all__ = ["Found", "backward", "forward", "saved_shapes"]


class Found(NamedTuple):
    """What ``run`` returns."""

    losses: Tensor  # float32 [M], 0 for a row that does not count, NaN for one with a wrong id
    counts: Tensor  # float32 [M], 1 for a row that counts, else 0
    gradients: list[Tensor]  # float32, of those of queries, items and log_q that are wanted


class Run(Protocol):
    def __call__(self, problem: Problem, upstream: Tensor | None, needs: list[bool]) -> Found:
        """``upstream`` is float32 ``[M]``, dense; without it no gradient is wanted."""


def forward(run: Run, problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss; saved are its derivative by a row's loss, and finished gradients."""
    upstream = None
    if _one_pass(problem, needs):
        upstream = problem.queries.new_ones(problem.queries.shape[:1], dtype=torch.float32)
    found = run(problem, upstream, needs)
    loss, scale = reduced(problem, found.losses, found.counts)
    return loss, [scale, *found.gradients] if any(needs) else []


def backward(
    run: Run, grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, items, log_q, each in its input's dtype."""
    factor = grad.to(torch.float32) * saved[0]
    if _one_pass(problem, needs):
        found = [part * factor for part in saved[1:]]
    else:
        upstream = factor.expand(problem.queries.shape[:1]).contiguous()
        found = run(problem, upstream, needs).gradients
    return [part.to(t.dtype) for part, t in zip(found, _wanted(problem, needs), strict=True)]


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32: the registration's fake mirrors them."""
    if not any(needs):
        return []
    if not _one_pass(problem, needs):
        return [()]
    return [(), *(tuple(t.shape) for t in _wanted(problem, needs))]


def _one_pass(problem: Problem, needs: list[bool]) -> bool:
    return problem.reduction != "none" and any(needs) and problem.queries.device.type == "cpu"


def _wanted(problem: Problem, needs: list[bool]) -> list[Tensor]:
    inputs = (problem.queries, problem.items, problem.log_q)
    return [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
