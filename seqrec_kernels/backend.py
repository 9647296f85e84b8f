"""Which implementation of an operator runs, and why.

An operator registers its implementations fastest first, each with one *eligibility predicate*: a
function of the operator's tensors that returns None where the implementation can run them and
otherwise the reason why not. Dispatch takes the first that can; tests skip by the same predicates
and ``seqrec doctor`` prints them, so the three never disagree.

``backend("blocked")`` (a context manager) and ``SEQREC_KERNELS_BACKEND=blocked`` (from outside,
read once at import) force one implementation everywhere; the innermost context wins over the
variable. Forcing an implementation that an operator does not have, or that cannot run the call, is
an error that says so. The one exception is float64, which only the references compute and which
runs them whatever is asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import Tensor

NAMES = ("native", "triton", "blocked", "reference")

Predicate = Callable[[Tensor, Tensor], "str | None"]

_operators: dict[str, Mapping[str, Predicate]] = {}
_thread = threading.local()


def _known(name: str, argument: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{argument} is {name!r}; it must be one of {', '.join(NAMES)}")
    return name


_from_outside: str | None = os.environ.get("SEQREC_KERNELS_BACKEND") or None
if _from_outside is not None:
    _known(_from_outside, "SEQREC_KERNELS_BACKEND")


class backend:
    """Runs every operator called inside on one implementation, in this thread.

    ``with backend("reference"): ...`` for example gives losses second derivatives.

    Args:
        name: ``"reference"`` (dense torch), ``"blocked"`` (torch in cache-sized blocks),
            ``"triton"`` or ``"native"`` (compiled C++ / CUDA).

    Raises:
        ValueError: ``name`` is none of these.
    """

    def __init__(self, name: str) -> None:
        self.name = _known(name, "backend name")

    def __enter__(self) -> backend:
        # a stack, so that one object may be entered again inside itself
        stack = getattr(_thread, "stack", ())
        _thread.stack = (*stack, self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _thread.stack = _thread.stack[:-1]


def forced() -> str | None:
    """The implementation asked for, or None where the choice is free."""
    stack = getattr(_thread, "stack", ())
    return stack[-1] if stack else _from_outside


def register(operator: str, implementations: Mapping[str, Predicate]) -> None:
    """Makes ``operator`` known with its implementations, fastest first."""
    _operators[operator] = implementations


def choose(operator: str, queries: Tensor, items: Tensor) -> str:
    """The name of the implementation that runs this call.

    Raises:
        RuntimeError: the forced implementation does not exist or cannot run the call.
    """
    implementations = _operators[operator]
    name = forced()
    if name is not None:
        if name not in implementations:
            raise RuntimeError(
                f"this version has no {name!r} implementation of {operator}; "
                f"it has {', '.join(map(repr, implementations))}"
            )
        reason = implementations[name](queries, items)
        if reason is None:
            return name
        if queries.dtype != torch.float64:
            raise RuntimeError(f"{operator} cannot run on {name!r}: {reason}")
    for candidate, predicate in implementations.items():
        if predicate(queries, items) is None:
            return candidate
    raise RuntimeError(f"no implementation of {operator} runs {queries.dtype} on {queries.device}")


def report(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, str | None]]:
    """For every operator and implementation: None where it would run, else why not.

    Implementations this version does not have are listed too. The first None of an operator is
    what runs. Nothing is launched; only two tiny tensors are made on ``device``.
    """
    queries = torch.zeros(1, 1, device=device, dtype=dtype)
    items = torch.zeros(1, 1, device=device, dtype=dtype)
    table: dict[str, dict[str, str | None]] = {}
    for operator, implementations in sorted(_operators.items()):
        table[operator] = {
            name: implementations[name](queries, items)
            if name in implementations
            else "not part of this version"
            for name in (*implementations, *(n for n in NAMES if n not in implementations))
        }
    return table


def anywhere(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the references: torch runs them on every device in every dtype."""
    return None


def not_float64(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the blocked paths: their sums are float32."""
    return "float64 runs the reference" if queries.dtype == torch.float64 else None
