"""The n items largest in the column of the batch's largest mean, beside a column's topk in torch.

Each runs on a row-major table and on one that the caller holds transposed, where the column is
contiguous: keeping that beside the table is the caller's choice, and its copy is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seqrec_kernels import max_index_recall

from ._common import Case, benchmarked, implementations, is_ours


class Shape(NamedTuple):
    """One call: rows, items, width, how many are recalled."""

    b: int
    v: int
    d: int
    n: int

    def __str__(self) -> str:
        return f"n={self.n} B={self.b} V={self.v} D={self.d}"


SHAPES = {
    "tiny": [Shape(24, 300, 16, 20)],
    "paper": [Shape(1024, 12_101, 64, 100), Shape(1024, 12_101, 64, 12_101)],
    "wide": [Shape(1024, 12_101, 256, 100)],
    "large": [Shape(1024, 100_000, 64, 100)],
    "million": [Shape(1024, 1_000_000, 64, 100), Shape(1024, 1_000_000, 64, 100_000)],
}


def eager(q: Tensor, e: Tensor, n: int) -> Tensor:
    """What a training loop writes."""
    return e[:, q.mean(0).argmax()].topk(n).indices


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    b, v, d, n = shape
    torch.manual_seed(0)
    q, e = (torch.randn(rows, d).to(device, dtype) for rows in (b, v))
    q[:, d // 2] += 1  # one column that every precision of a mean agrees on
    column, transposed = e[:, d // 2], e.T.contiguous().T

    def gate(rival: str) -> None:
        found = rivals[rival]()
        assert isinstance(found, Tensor) and found.shape == (n,)
        assert found.unique().shape == (n,), "not n items"
        right = column.sort(descending=True, stable=True)
        assert torch.equal(column[found], right.values[:n]), "not the largest, in order"
        assert not is_ours(rival) or torch.equal(found, right.indices[:n]), "ties"

    runs, rivals, left_out = implementations(
        "max_index_recall", q, e, lambda: max_index_recall(q, e, n)
    )
    rivals["ours, table transposed"] = lambda: max_index_recall(q, transposed, n)
    rivals["eager"] = lambda: eager(q, e, n)
    rivals["eager, table transposed"] = lambda: eager(q, transposed, n)
    return Case(
        "max_index_recall",
        str(shape),
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=b * d,
        bytes=(b * d + v) * dtype.itemsize + 8 * n,
    )


@pytest.mark.parametrize(
    "rival",
    ["ours", "seqrec blocked", "eager", "ours, table transposed", "eager, table transposed"],
)
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_max_index_recall(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
