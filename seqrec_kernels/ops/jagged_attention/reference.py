"""Jagged attention, dense and readable: the oracle, the baseline, and float64.

Plain differentiable torch over all pairs ``[heads, M, N]`` of a batch, so it also has the second
derivatives the fast implementations leave out. The formulas stand in ``problem.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.backend import anywhere as unsupported
from seqrec_kernels.ops.jagged_attention.problem import Problem, operands, spans

__all__ = ["attention", "unsupported"]


def attention(problem: Problem) -> Tensor:
    """The output of ``problem``, in the dtype of its queries."""
    narrow = problem.queries.dtype
    dtype = torch.float64 if narrow == torch.float64 else torch.float32
    column = torch.arange(problem.tokens, device=problem.offsets.device)
    first, end = (place[:, None] for place in spans(problem))
    seen = (column >= first) & (column < end)  # [M, N]
    sees, used = first < end, column[:, None] < problem.offsets[-1]
    # what belongs to no sequence may hold anything
    q, k, v = (
        torch.where(counts, rows.to(dtype), 0)  # [rows, heads * size]
        .unflatten(1, (problem.heads, problem.size))
        .transpose(0, 1)
        for rows, counts in zip(operands(problem), (sees, used, used), strict=True)
    )
    scores = q @ k.transpose(1, 2) * problem.scale
    # -inf all along a row would be NaN in the softmax and its derivative
    weights = scores.masked_fill(~seen & sees, -torch.inf).softmax(-1) * seen
    if problem.dropped:
        weights = weights * _kept(problem) * problem.kept_scale
    return (weights @ v).transpose(0, 1).flatten(1).to(narrow)


def _kept(problem: Problem) -> Tensor:
    """Which weights are not dropped, bool ``[heads, M, N]``."""
    device, keys = problem.offsets.device, problem.tokens
    row = torch.arange(problem.queries.shape[0], device=device)
    head = torch.arange(problem.heads, device=device)
    c0 = row * problem.heads + head[:, None]
    c1 = torch.arange(-(-keys // 8), device=device)
    numbers = philox.sixteens(problem.seed, philox.STREAM_ATTENTION, c0[:, :, None], c1)
    return numbers.flatten(2)[:, :, :keys] >= problem.dropped
