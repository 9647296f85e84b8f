"""The sampled losses, compiled: csrc/cpu/sampled.cpp on the CPU, cuda.py on CUDA.

On the CPU any strides; bfloat16 and float16 are widened row by row as they are read. Sums are
float32.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from seqrec_kernels import native
from seqrec_kernels.ops.sampled import cuda, passes
from seqrec_kernels.ops.sampled.passes import Found
from seqrec_kernels.ops.sampled.problem import Problem

__all__ = ["backward", "forward", "run", "saved_shapes", "unsupported"]

WORKSPACE = 2**20  # bytes: weights and queries of the rows whose items are owed


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate: None where there is a library for the device, else why not."""
    return (cuda if queries.is_cuda else native).unsupported(queries, items)


def run(problem: Problem, upstream: Tensor | None, needs: list[bool]) -> Found:
    """Losses and, under an upstream gradient ``[M]``, the gradients wanted."""
    if problem.queries.is_cuda:
        return cuda.run(problem, upstream, needs)
    queries, items, log_q = problem.queries, problem.items, problem.log_q
    losses = queries.new_empty(queries.shape[:1], dtype=torch.float32)
    counts = torch.empty_like(losses)
    if upstream is None:
        needs = [False] * 3
    # the library writes the queries' whole, and adds to the others
    d_queries = queries.new_empty(queries.shape, dtype=torch.float32) if needs[0] else None
    d_items = items.new_zeros(items.shape, dtype=torch.float32) if needs[1] else None
    d_log_q = items.new_zeros(items.shape[:1], dtype=torch.float32) if needs[2] else None
    torch.ops.seqrec_native.sampled(
        queries.detach(), items.detach(), problem.positives.contiguous(), problem.negatives,
        None if log_q is None else log_q.detach().contiguous(), problem.loss, problem.temperature,
        problem.beta, problem.drop_hits, upstream, WORKSPACE, losses, counts,
        d_queries, d_items, d_log_q,
    )  # fmt: skip
    gradients = [part for part in (d_queries, d_items, d_log_q) if part is not None]
    return Found(losses, counts, gradients)


forward = partial(passes.forward, run)
backward = partial(passes.backward, run)
saved_shapes = passes.saved_shapes
