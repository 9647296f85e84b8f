"""Jagged attention in C++ on the CPU; how is said in csrc/cpu/jagged_attention.h.

It computes in float32: bfloat16 and float16 are widened before it and rounded once behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import unsupported
from seqrec_kernels.ops.jagged_attention.problem import Problem, gradients, operands, saved_shapes

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The output; saved are the log-sum-exps, ``[M, heads]``."""
    queries, keys, values = _rows(problem)
    out = torch.empty(queries.shape)
    lse = torch.empty(queries.shape[0], problem.heads)
    torch.ops.seqrec_native.jagged_attention_forward(
        queries, keys, values, *_rest(problem), out, lse
    )
    return out.to(problem.queries.dtype), [lse] if any(needs) else []


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, keys, values, each in its input's dtype."""
    found, parts = gradients(problem, needs, lambda t: torch.empty(t.shape))
    torch.ops.seqrec_native.jagged_attention_backward(
        grad.to(torch.float32).contiguous(), *_rows(problem), *_rest(problem),
        saved[1], *parts,
    )  # fmt: skip
    return [part.to(grad.dtype) for part in found]


def _rows(problem: Problem) -> list[Tensor]:
    """Queries, keys and values in float32, each row in one piece; the rows may lie anywhere."""
    wide = (t.detach().to(torch.float32) for t in operands(problem))
    return [t if t.stride(1) == 1 else t.contiguous() for t in wide]


def _rest(problem: Problem) -> tuple[Tensor, int, bool, bool, Tensor, int]:
    offsets = problem.offsets.contiguous()
    return (
        offsets, problem.heads, problem.causal, problem.last, problem.seed, problem.dropped
    )  # fmt: skip
