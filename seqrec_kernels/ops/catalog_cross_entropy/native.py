"""Catalogue cross-entropy in C++ on the CPU; what is computed is in csrc/cpu/<this family>.cpp.

Two plans, as in ``blocked.py``. *One pass* keeps the exponentials of a block of rows against all
items and forms the gradients in the forward; it is for a mean or sum loss where that block fits the
workspace, or where only the queries want a gradient and nothing has to be kept. *Recompute* is for
everything else. The choice depends on shapes alone.

bfloat16 is multiplied as it is where the processor multiplies pairs of it (AVX512-BF16), which
rounds probabilities, and queries times their factors, once each before they enter the gradients'
products; elsewhere, and float16 everywhere, it is read as float32. Sums are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import from_first, unsupported
from seqrec_kernels.ops.catalog_cross_entropy.labels import (
    Labels,
    Problem,
    labels_of,
    reduced,
    shapes_saved,
)

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

# bytes: the kept exponentials of 64 rows against all items must fit (32,768 items), and as many
# blocks of 64 rows as do are worked at a time; it stays within a core's share of the last cache
WORKSPACE = 2**23
_LANES = 64


def _one_pass(problem: Problem, needs: list[bool]) -> bool:
    if problem.reduction == "none" or not any(needs):
        return False
    if not (needs[1] or needs[2]):
        return True
    count = problem.items.shape[0] - problem.first_item
    return count * _LANES * 4 <= WORKSPACE


def _operands(problem: Problem, labels: Labels) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, items, target columns and bias, from ``first_item`` on."""
    items, bias, _ = from_first(problem.items, problem.item_bias, problem.first_item, None)
    return problem.queries.detach(), items, labels.columns.contiguous(), bias


def _gradients(
    problem: Problem, needs: list[bool]
) -> tuple[list[Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """float32 buffers of the gradients wanted, and the parts of them that the library writes."""
    shapes = (problem.queries.shape, problem.items.shape, problem.items.shape[:1])
    # without rows the library writes nothing
    new = problem.queries.new_empty if len(problem.queries) else problem.queries.new_zeros
    found = [
        new(shape, dtype=torch.float32) if need else None
        for shape, need in zip(shapes, needs, strict=True)
    ]
    d_queries, d_items, d_bias = found
    first = problem.first_item
    if d_items is not None:
        d_items[:first].zero_()
        d_items = d_items[first:]
    if d_bias is not None:
        d_bias[:first].zero_()
        d_bias = d_bias[first:]
    return [part for part in found if part is not None], (d_queries, d_items, d_bias)


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss and what the backward needs: the finished gradients, or the LSE of rows."""
    labels = labels_of(problem, torch.float32)
    operands = _operands(problem, labels)
    lse = labels.mass.new_empty(labels.mass.shape)
    chosen = torch.empty_like(labels.weights)
    if _one_pass(problem, needs):
        saved, parts = _gradients(problem, needs)
        torch.ops.seqrec_native.cross_entropy_one_pass(
            *operands, problem.temperature, *_factors(labels, labels.scale), WORKSPACE,
            lse, chosen, *parts
        )  # fmt: skip
    else:
        torch.ops.seqrec_native.cross_entropy_forward(*operands, problem.temperature, lse, chosen)
        saved = [lse] if any(needs) else []
    return reduced(problem, labels, lse, chosen), saved


def _factors(labels: Labels, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies a row's probabilities and its targets in the gradients."""
    return upstream * labels.mass, (labels.weights * -upstream[:, None]).contiguous()


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, items, item_bias, each in its input's dtype."""
    inputs = [problem.queries, problem.items, problem.item_bias]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    if _one_pass(problem, needs):
        return [(part * grad).to(t.dtype) for part, t in zip(saved, wanted, strict=True)]
    labels = labels_of(problem, torch.float32)
    found, parts = _gradients(problem, needs)
    upstream = grad.to(torch.float32) * labels.scale
    torch.ops.seqrec_native.cross_entropy_backward(
        *_operands(problem, labels), problem.temperature, *_factors(labels, upstream), WORKSPACE,
        saved[0], *parts
    )  # fmt: skip
    return [part.to(t.dtype) for part, t in zip(found, wanted, strict=True)]


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32: the registration's fake mirrors them."""
    return shapes_saved(problem, needs, one_pass=_one_pass(problem, needs))
