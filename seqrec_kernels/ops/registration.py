"""How an operator is registered with torch: schema, autograd and the plain eager call.

A family describes a call by a ``NamedTuple``, its *problem*: the tensors first, then numbers and
words. An implementation of the family is a module that offers

    forward(problem, needs) -> (output, saved)
    backward(grad, problem, saved, needs) -> the gradients wanted, each in its input's dtype
    saved_shapes(problem, needs) -> shapes of what ``forward`` saves, all float32

where ``needs`` says which of the differentiable tensors want a gradient. It is part of the call
because a mean or sum loss may form its gradients in the forward. The output is a loss, or what the
family says it is; then the backward may get it back as the first of ``saved``.

There are two ways in, with one ``_setup`` and one ``_backward`` behind both: the autograd function
``_Direct`` for plain eager calls, and the operators ``seqrec_kernels::NAME`` and
``seqrec_kernels::NAME_backward`` for everything that watches or traces a call (``torch.compile``,
dispatch modes, tensor subclasses). Nothing here knows a family or an implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, NoneType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from seqrec_kernels import calls

__all__ = ["Registered", "RegisteredLoss", "schema"]

_SCHEMA = {Tensor: "Tensor", int: "SymInt", float: "float", bool: "bool", str: "str"}


def schema(call: type[Any]) -> str:
    """The fields of a NamedTuple as the arguments of an operator's schema."""
    hints = get_type_hints(call)
    return ", ".join(f"{_kind(hints[field])} {field}" for field in call._fields)


def _kind(annotation: Any) -> str:
    options = get_args(annotation)
    if NoneType in options:
        (known,) = (option for option in options if option is not NoneType)
        return _SCHEMA[known] + "?"
    return _SCHEMA[annotation]


class Registered:
    """An operator that is differentiable once, over the implementations of its family.

    Args:
        name: of the operator, ``seqrec_kernels::name``.
        problem: the family's NamedTuple.
        wanted: the names of the tensors that may want a gradient.
        implementations: name -> module.
        output: an unwritten tensor like the output of a problem.
        keeps_output: whether the backward needs the output.
    """

    def __init__(
        self,
        name: str,
        problem: type[Any],
        wanted: Sequence[str],
        implementations: Mapping[str, ModuleType],
        output: Callable[[Any], Tensor],
        keeps_output: bool = False,
    ) -> None:
        self.name = name
        self.implementations = implementations
        self._output = output
        self._first_saved = 0 if keeps_output else 1
        self._problem = problem
        fields: tuple[str, ...] = problem._fields
        arguments = schema(problem)
        self._tensors = arguments.count("Tensor")
        self._places = [fields.index(field) for field in wanted]
        self._operator = torch.library.custom_op(
            f"seqrec_kernels::{name}",
            self._forward,
            mutates_args=(),
            schema=f"({arguments}, bool[] needs, str implementation) -> Tensor[]",
        )
        self._operator.register_fake(self._forward_fake)
        self._operator.register_autograd(self._operator_backward, setup_context=self._setup)
        self._backward_operator = torch.library.custom_op(
            f"seqrec_kernels::{name}_backward",
            self._gradients,
            mutates_args=(),
            schema=f"(Tensor grad, {arguments}, Tensor[] saved, bool[] needs, "
            "str implementation) -> Tensor[]",
        )
        self._backward_operator.register_fake(self._backward_fake)

    def __call__(self, problem: Any, implementation: str) -> Tensor:
        """The output of ``problem``."""
        tensors = problem[: self._tensors]
        calls.plain_backward_only(self.name, *tensors)
        recording = torch.is_grad_enabled()
        needs = [recording and t is not None and t.requires_grad for t in self._inputs(problem)]
        if not calls.direct(*tensors):
            return self._operator(*problem, needs, implementation)[0]
        if any(needs):
            return _Direct.apply(self, *problem, needs, implementation)[0]
        return self._forward(*problem, needs, implementation)[0]

    def _inputs(self, problem: Sequence[Any]) -> list[Tensor | None]:
        return [problem[place] for place in self._places]

    # ---- the operators: fields of the problem, then what follows them in the schema --------------

    def _forward(self, *arguments: Any) -> list[Tensor]:
        *fields, needs, implementation = arguments
        with calls.no_autocast(fields[0].device.type):
            output, saved = self.implementations[implementation].forward(
                self._problem(*fields), needs
            )
        return [output, *saved]

    def _forward_fake(self, *arguments: Any) -> list[Tensor]:
        *fields, needs, implementation = arguments
        problem = self._problem(*fields)
        saved = self.implementations[implementation].saved_shapes(problem, needs)
        rows = fields[0]
        kept = [rows.new_empty(shape, dtype=torch.float32) for shape in saved]
        return [self._output(problem), *kept]

    def _gradients(self, grad: Tensor, *arguments: Any) -> list[Tensor]:
        *fields, saved, needs, implementation = arguments
        with calls.no_autocast(fields[0].device.type):
            return self.implementations[implementation].backward(
                grad, self._problem(*fields), saved, needs
            )

    def _backward_fake(self, grad: Tensor, *arguments: Any) -> list[Tensor]:
        *fields, _, needs, _ = arguments
        pairs = zip(self._inputs(fields), needs, strict=True)
        return [t.new_empty(t.shape) for t, need in pairs if need and t is not None]

    # ---- autograd --------------------------------------------------------------------------------

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
        *fields, ctx.needs, ctx.implementation = inputs
        ctx.save_for_backward(*fields[: self._tensors], *output[self._first_saved :])
        ctx.numbers = fields[self._tensors :]
        ctx.set_materialize_grads(False)

    def _backward(self, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """A gradient for each field of the problem, and None for needs and implementation."""
        kept = ctx.saved_tensors  # read once: under activation checkpointing a second look raises
        tensors, saved = kept[: self._tensors], list(kept[self._tensors :])
        fields = [*tensors, *ctx.numbers]
        result: list[Tensor | None] = [None] * (len(fields) + 2)
        if grad is None or not any(ctx.needs):
            return tuple(result)
        rest = (saved, ctx.needs, ctx.implementation)
        if calls.direct(grad, *tensors, *saved):
            with torch.no_grad():
                found = self._gradients(grad, *fields, *rest)
        else:
            found = self._backward_operator(grad.detach(), *fields, *rest)
        if torch.is_grad_enabled():
            sources = [t for t in (grad, *self._inputs(fields)) if t is not None]
            found = _FirstOrderOnly.apply(self.name, len(found), *found, *sources)
        places = [p for p, need in zip(self._places, ctx.needs, strict=True) if need]
        for place, gradient in zip(places, found, strict=True):
            result[place] = gradient
        return tuple(result)

    def _operator_backward(
        self, ctx: Any, grads: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        return self._backward(ctx, grads[0])


class RegisteredLoss(Registered):
    """A loss: float32, of a ``problem`` whose first tensor has a row for each, and which reduces.

    Args as of ``Registered``.
    """

    def __init__(
        self,
        name: str,
        problem: type[Any],
        wanted: Sequence[str],
        implementations: Mapping[str, ModuleType],
    ) -> None:
        super().__init__(name, problem, wanted, implementations, _loss)


def _loss(problem: Any) -> Tensor:
    rows: Tensor = problem[0]
    shape = rows.shape[:1] if problem.reduction == "none" else ()
    return rows.new_empty(shape, dtype=torch.float32)


class _Direct(torch.autograd.Function):
    """The plain eager call: the registered operator, then its arguments."""

    # not in the form with `setup_context`, for which torch inspects a signature every time
    @staticmethod
    def forward(ctx: Any, operator: Registered, *arguments: Any) -> tuple[Tensor, ...]:
        output = tuple(operator._forward(*arguments))
        ctx.operator = operator
        operator._setup(ctx, arguments, output)
        ctx.mark_non_differentiable(*output[1:])
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.operator._backward(ctx, grads[0]))


class _FirstOrderOnly(torch.autograd.Function):
    """Hands gradients on unchanged; their own derivative is refused with the way out."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{ctx.name} has no second derivative here; "
            'compute it under seqrec_kernels.backend("reference"), which has'
        )
