"""Recall by one column in C++, in every instruction set, against a sort in Python."""

from __future__ import annotations

import pytest
import torch
from native_versions import threads, version  # noqa: F401 (fixtures)
from test_max_index_recall import (
    SHAPES,
    VALUES,
    any_strides_and_any_dtype,
    every_n_is_exact,
    table,
    the_column_is_the_largest_not_the_longest,
    what_is_no_number_is_never_chosen,
)

from seqrec_kernels import backend, max_index_recall

# pieces of 1024 numbers, and one beside them
LONG = [(2, 1023, 2), (300, 1024, 1), (2, 1025, 3), (1, 4200, 2)]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", SHAPES + LONG)
def test_every_n_is_exact(shape: tuple[int, int, int], values: str) -> None:
    every_n_is_exact(shape, values)


def test_what_is_no_number_is_never_chosen() -> None:
    what_is_no_number_is_never_chosen()


def test_the_column_is_the_largest_not_the_longest() -> None:
    the_column_is_the_largest_not_the_longest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_strides_and_any_dtype(dtype: torch.dtype) -> None:
    any_strides_and_any_dtype(dtype)


@pytest.mark.parametrize("values", ["real", "rising", "one", "holes"])
def test_parts_of_several_threads_agree_with_the_reference(values: str, threads: int) -> None:  # noqa: F811
    e = table(300_000, 2, values)
    q = torch.randn(700, 2)
    for some in (e, e.T.contiguous().T):
        for n in (1, 100, 70_000, 300_000):
            ours = max_index_recall(q, some, n)
            with backend("reference"):
                assert torch.equal(ours, max_index_recall(q, e, n))


def test_no_column_but_one_is_read() -> None:
    # a copy of so many columns would fit into no memory
    items, width = 4000, 2**20
    column = torch.randn(items)
    e = column.as_strided((items, width), (1, 0))
    q = torch.randn(2, 1).expand(2, width)
    assert max_index_recall(q, e, 9).tolist() == column.topk(9).indices.tolist()


def test_opcheck_and_compiled_equals_eager() -> None:
    q, e = torch.randn(4, 4), torch.randn(90, 4)
    operator = torch.ops.seqrec_kernels.max_index_recall.default
    torch.library.opcheck(operator, (q, e, 5, 1, "native"))
    compiled = torch.compile(max_index_recall, fullgraph=True)
    assert torch.equal(compiled(q, e, 5, first_item=2), max_index_recall(q, e, 5, first_item=2))
