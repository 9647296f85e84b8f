"""Registration and backward of the catalogue cross-entropy. It knows no implementation.

An implementation offers ``forward(problem, needs) -> (loss, saved)``,
``backward(grad, problem, saved, needs) -> gradients wanted`` and ``saved_shapes(problem, needs)``.
There are two ways in, with one ``_setup`` and one ``_backward`` behind both: the autograd function
``_Direct`` for plain eager calls, and the operators ``seqrec_kernels::catalog_cross_entropy`` and
``..._backward`` for everything that watches or traces a call (``torch.compile``, dispatch modes,
tensor subclasses). ``needs`` says which of queries, items and item_bias want a gradient; it is part
of the call because a mean or sum loss may form its gradients in the forward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from seqrec_kernels import checks
from seqrec_kernels.ops.catalog_cross_entropy import blocked, native
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem
from seqrec_kernels.triton_loader import TritonKernels

_implementations: dict[str, ModuleType] = {
    "native": native,
    "triton": TritonKernels("catalog_cross_entropy"),
    "blocked": blocked,
}


def catalog_cross_entropy(problem: Problem, implementation: str) -> Tensor:
    """The loss of ``problem``, differentiable once."""
    inputs = (problem.queries, problem.items, problem.item_bias)
    checks.plain_backward_only("catalog_cross_entropy", *problem[:5])
    recording = torch.is_grad_enabled()
    needs = [recording and t is not None and t.requires_grad for t in inputs]
    if not checks.direct(*problem[:5]):
        return _operator(*problem, needs, implementation)[0]
    if any(needs):
        return _Direct.apply(*problem, needs, implementation)[0]
    return _forward(problem, needs, implementation)[0]


def _forward(problem: Problem, needs: list[bool], implementation: str) -> list[Tensor]:
    with checks.no_autocast(problem.queries.device.type):
        loss, saved = _implementations[implementation].forward(problem, needs)
    return [loss, *saved]


def _gradients(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool], implementation: str
) -> list[Tensor]:
    with checks.no_autocast(problem.queries.device.type):
        return _implementations[implementation].backward(grad, problem, saved, needs)


# ---- the operators -------------------------------------------------------------------------------


@torch.library.custom_op("seqrec_kernels::catalog_cross_entropy", mutates_args=())
def _operator(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    item_bias: Tensor | None,
    first_item: int,
    temperature: float,
    reduction: str,
    needs: list[bool],
    implementation: str,
) -> list[Tensor]:
    problem = Problem(
        queries, items, targets, weights, item_bias, first_item, temperature, reduction
    )
    return _forward(problem, needs, implementation)


@_operator.register_fake
def _(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    item_bias: Tensor | None,
    first_item: int,
    temperature: float,
    reduction: str,
    needs: list[bool],
    implementation: str,
) -> list[Tensor]:
    problem = Problem(
        queries, items, targets, weights, item_bias, first_item, temperature, reduction
    )
    saved = _implementations[implementation].saved_shapes(problem, needs)
    shapes = [tuple(queries.shape[:1]) if reduction == "none" else (), *saved]
    return [queries.new_empty(shape, dtype=torch.float32) for shape in shapes]


@torch.library.custom_op("seqrec_kernels::catalog_cross_entropy_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    item_bias: Tensor | None,
    first_item: int,
    temperature: float,
    reduction: str,
    saved: list[Tensor],
    needs: list[bool],
    implementation: str,
) -> list[Tensor]:
    problem = Problem(
        queries, items, targets, weights, item_bias, first_item, temperature, reduction
    )
    return _gradients(grad, problem, saved, needs, implementation)


@_backward_operator.register_fake
def _(
    grad: Tensor,
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    item_bias: Tensor | None,
    first_item: int,
    temperature: float,
    reduction: str,
    saved: list[Tensor],
    needs: list[bool],
    implementation: str,
) -> list[Tensor]:
    inputs = (queries, items, item_bias)
    return [
        t.new_empty(t.shape)
        for t, need in zip(inputs, needs, strict=True)
        if need and t is not None
    ]


# ---- autograd ------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, first_item, temperature, reduction, needs, implementation = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.numbers = (first_item, temperature, reduction)
    ctx.needs, ctx.implementation = needs, implementation
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    kept = ctx.saved_tensors  # read once: under activation checkpointing a second look raises
    tensors, saved = kept[:5], list(kept[5:])
    problem = Problem(*tensors, *ctx.numbers)
    inputs = (problem.queries, problem.items, problem.item_bias)
    if grad is None or not any(ctx.needs):
        return (None,) * 10
    if checks.direct(grad, *tensors, *saved):
        with torch.no_grad():
            found = _gradients(grad, problem, saved, ctx.needs, ctx.implementation)
    else:
        found = _backward_operator(grad.detach(), *problem, saved, ctx.needs, ctx.implementation)
    if torch.is_grad_enabled():
        sources = [t for t in (grad, *inputs) if t is not None]
        found = _FirstOrderOnly.apply(len(found), *found, *sources)
    rest = iter(found)
    d_queries, d_items, d_bias = (next(rest) if need else None for need in ctx.needs)
    return (d_queries, d_items, None, None, d_bias, None, None, None, None, None)


class _FirstOrderOnly(torch.autograd.Function):
    """Hands gradients on unchanged; their own derivative is refused with the way out."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "catalog_cross_entropy has no second derivative here; "
            'compute the loss under seqrec_kernels.backend("reference"), which has'
        )


class _Direct(torch.autograd.Function):
    """The plain eager call."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *problem, needs, implementation = arguments
        return tuple(_forward(Problem(*problem), needs, implementation))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _setup(ctx, inputs, list(output))
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grads[0])


def _operator_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    return _backward(ctx, grads[0])


_operator.register_autograd(_operator_backward, setup_context=_setup)
