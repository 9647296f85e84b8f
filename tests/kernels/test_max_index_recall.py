"""max_index_recall against a sort in Python, on the torch paths; promises to every path."""

from __future__ import annotations

import oracles
import pytest
import torch
from oracles import Watch
from torch import Tensor

from seqrec_kernels import backend, max_index_recall
from seqrec_kernels.ops.max_index_recall import blocked

OPERATOR = torch.ops.seqrec_kernels.max_index_recall.default
SHAPES = [(1, 1, 1), (3, 2, 4), (17, 63, 5), (5, 130, 50), (2, 700, 3), (65, 300, 130)]
VALUES = ("real", "whole", "one", "rising", "holes")


def table(items: int, width: int, values: str) -> Tensor:
    """Item tables that a selection may stumble over."""
    if values == "real":
        return torch.randn(items, width)
    if values == "one":
        return torch.full((items, width), -1.5)
    if values == "rising":
        return torch.linspace(-2, 1, items)[:, None].expand(items, width).contiguous()
    made = torch.randint(-2, 3, (items, width)).float()
    if values == "holes":
        for number in (torch.nan, torch.inf, -torch.inf, -0.0):
            made[torch.rand(items, width) < 0.2] = number
    return made


def every_n_is_exact(shape: tuple[int, int, int], values: str) -> None:
    b, v, d = shape
    q, e = torch.randn(b, d), table(v, d, values)
    if values == "whole":
        q = table(b, d, values)  # means tie
    for first in {0, min(3, v - 1)}:
        for n in {1, min(2, v - first), (v - first + 1) // 2, v - first}:
            ours = max_index_recall(q, e, n, first_item=first)
            assert ours.dtype == torch.int64
            assert ours.tolist() == oracles.recall(q.tolist(), e.tolist(), n, first)


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_n_is_exact(
    tiny_tiles: None, shape: tuple[int, int, int], values: str, name: str
) -> None:
    with backend(name):
        every_n_is_exact(shape, values)


NAN, INF = torch.nan, torch.inf


def what_is_no_number_is_never_chosen() -> None:
    e = torch.tensor([[0.0, 1.0], [NAN, 4.0], [-INF, 3.0], [2.0, NAN]])
    # the mean of column 1, and of both, is NaN; infinities that cancel are NaN too
    for q, expected in (
        ([[-9.0, NAN], [-9.0, 5.0]], [3, 0, 2, -1]),
        ([[-INF, NAN], [1.0, 1.0]], [3, 0, 2, -1]),
        ([[-9.0, INF], [-9.0, -INF]], [3, 0, 2, -1]),
        ([[5.0, INF], [5.0, 0.0]], [1, 2, 0, -1]),
        ([[NAN, NAN], [5.0, 0.0]], [-1, -1, -1, -1]),
    ):
        assert max_index_recall(torch.tensor(q), e, 4).tolist() == expected
    assert max_index_recall(torch.ones(0, 2), e, 3).tolist() == [-1] * 3
    assert max_index_recall(torch.ones(3, 0), torch.ones(4, 0), 3).tolist() == [-1] * 3
    zeros = torch.tensor([[-0.0], [0.0], [-1.0], [0.0], [-0.0]])
    assert max_index_recall(torch.ones(1, 1), zeros, 5).tolist() == [0, 1, 3, 4, 2]


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_what_is_no_number_is_never_chosen(tiny_tiles: None, name: str) -> None:
    with backend(name):
        what_is_no_number_is_never_chosen()


def the_column_is_the_largest_not_the_longest() -> None:
    q = torch.tensor([[-9.0, 1.0, 0.5], [-9.0, 1.0, 2.5]])
    e = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    assert max_index_recall(q, e, 1).tolist() == [2]
    # 2^24 + 1 has no float32: sums are wider than what they sum
    q = torch.cat((torch.tensor([[2.0**24, 2.0**24]]), torch.tensor([[1.0, 0.0]]).expand(8, 2)))
    assert max_index_recall(q.flip(1), e[1:, 1:], 1).tolist() == [1]


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_the_column_is_the_largest_not_the_longest(tiny_tiles: None, name: str) -> None:
    with backend(name):
        the_column_is_the_largest_not_the_longest()


def any_strides_and_any_dtype(dtype: torch.dtype) -> None:
    q, e = torch.randn(40, 6).to(dtype), torch.randn(500, 6).to(dtype)
    right = oracles.recall(q.tolist(), e.tolist(), 60, 2)
    wide = torch.randn(1000, 12).to(dtype)
    wide[::2, ::2] = e
    for some in (e, e.T.contiguous().T, wide[::2, ::2], e.flip(0).contiguous().flip(0)):
        assert max_index_recall(q, some, 60, first_item=2).tolist() == right
    assert max_index_recall(q.T.contiguous().T, e, 60, first_item=2).tolist() == right
    assert max_index_recall(q[:1].expand(9, 6), e[:1].expand(9, 6), 9).tolist() == list(range(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_strides_and_any_dtype(tiny_tiles: None, dtype: torch.dtype) -> None:
    any_strides_and_any_dtype(dtype)


def test_float64_is_not_rounded() -> None:
    q = torch.tensor([[1.0, 1.0 + 2**-40]], dtype=torch.float64)
    e = torch.tensor([[1.0, 1.0], [0.0, 1.0 + 2**-40]], dtype=torch.float64)
    assert max_index_recall(q, e, 2).tolist() == [1, 0]


def test_memory_is_that_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "WIDTH", 1000)
    monkeypatch.setattr(blocked, "ROWS", 1000)
    # expanded, so that views of the inputs themselves count as nothing
    q, e = torch.randn(1, 4).expand(20_000, 4), torch.randn(1, 4).expand(50_000, 4)
    with Watch() as watch:
        blocked.forward(q, e, 20, 0)
    assert watch.largest <= 8 * 4 * 1000


def test_opcheck_and_compiled_equals_eager() -> None:
    q, e = torch.randn(4, 4), torch.randn(90, 4)
    torch.library.opcheck(OPERATOR, (q, e, 5, 1, "blocked"))
    compiled = torch.compile(max_index_recall, fullgraph=True)
    assert torch.equal(compiled(q, e, 5, first_item=2), max_index_recall(q, e, 5, first_item=2))


def test_arguments_are_named_with_their_value() -> None:
    q, e = torch.randn(2, 4), torch.randn(6, 4)
    for kind, message, call in (
        (TypeError, "n must be an int, not float", (q, e, 2.0)),
        (TypeError, "n must be an int, not bool", (q, e, True)),
        (ValueError, r"n is 0; it must be in \[1, 7\)", (q, e, 0)),
        (ValueError, r"n is 7; it must be in \[1, 7\)", (q, e, 7)),
        (TypeError, "queries must be a torch.Tensor, not list", ([1.0], e, 2)),
        (TypeError, "queries are torch.float32 but items are torch.float16", (q, e.half(), 2)),
        (TypeError, "items must be float32, bfloat16, float16 or float64, not", (q, e.long(), 2)),
        (ValueError, "queries have width 4 but items have width 3", (q, e[:, :3], 2)),
        (ValueError, "queries must have two dimensions", (q[0], e, 2)),
    ):
        with pytest.raises(kind, match=message):
            max_index_recall(*call)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"first_item is 6; it must be in \[0, 6\)"):
        max_index_recall(q, e, 1, first_item=6)
    with pytest.raises(ValueError, match=r"n is 3; it must be in \[1, 3\)"):
        max_index_recall(q, e, 3, first_item=4)
