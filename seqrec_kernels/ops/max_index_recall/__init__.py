"""The items that are largest in the batch's strongest dimension."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from seqrec_kernels import calls, checks
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.max_index_recall import blocked, native, reference

__all__ = ["max_index_recall"]

_implementations: dict[str, ModuleType] = {
    "native": native,
    "blocked": blocked,
    "reference": reference,
}
register(
    "max_index_recall", {name: module.unsupported for name, module in _implementations.items()}
)


def max_index_recall(queries: Tensor, items: Tensor, n: int, *, first_item: int = 0) -> Tensor:
    """Candidates for a whole batch from one column of the item table.

    With ``e_b`` the mean row of ``queries`` and ``c`` its largest number's place (the largest, not
    the largest in size; ties: the lowest), the ``n`` items that are largest in column ``c``.

    Args:
        queries: ``[B, D]`` float32, bfloat16 or float16 (float64 runs the dense reference). The
            mean is summed in float64 and rounded to float32 once, so that neither the order of the
            rows nor the implementation changes ``c``.
        items: ``[V, D]`` in the same dtype, with any strides. Only column ``c`` is read. In a
            row-major table each of its numbers lies in a cache line of its own; a caller who keeps
            the table transposed, ``[D, V]``, and passes ``table.T`` has it read as it lies.
        n: how many, 1 <= n <= V - first_item.
        first_item: rows of ``items`` below it are no candidates, 0 <= first_item < V.

    Returns:
        int64 ``[n]``, values descending, ties by lowest id. Not differentiable.

    NaN ranks below every number, -inf included: a column whose mean is NaN is never ``c``, and an
    item whose number in column ``c`` is NaN is never returned; -1 stands at the end instead. Where
    no column has a mean (no rows, no columns, or all NaN) there are only -1.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.

    Source: R2NS (WWW 2026, doi 10.1145/3774904.3792360), equations 6 to 8.
    """
    queries, items = checks.matrices(queries=queries, items=items)
    first_item = checks.integer("first_item", first_item, 0, items.shape[0])
    n = checks.integer("n", n, 1, items.shape[0] - first_item + 1)
    implementation = choose("max_index_recall", queries, items)
    run = _run if calls.direct(queries, items) else _operator
    found: Tensor = run(queries, items, n, first_item, implementation)
    return found


def _run(queries: Tensor, items: Tensor, n: int, first_item: int, implementation: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = _implementations[implementation].forward(queries, items, n, first_item)
        return found


_operator = torch.library.custom_op("seqrec_kernels::max_index_recall", _run, mutates_args=())


@_operator.register_fake
def _(queries: Tensor, items: Tensor, n: int, first_item: int, implementation: str) -> Tensor:
    return queries.new_empty((n,), dtype=torch.int64)
