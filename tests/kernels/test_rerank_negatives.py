"""rerank_negatives against a sort in Python, on the torch paths; promises to every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import Watch
from rerank_calls import (
    SHAPES,
    every_call_is_exact,
    every_place_is_drawn_equally_often,
    expected,
    real_scores_are_those_of_the_best,
    what_is_no_number_is_never_drawn,
    whole,
)

from seqrec_kernels import SeenItems, backend, rerank_negatives
from seqrec_kernels.ops.rerank_negatives import blocked
from seqrec_kernels.ops.rerank_negatives.problem import Problem

OPERATOR = torch.ops.seqrec_kernels.rerank_negatives.default
NAMES = pytest.mark.parametrize("name", ["blocked", "reference"])


@NAMES
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_call_is_exact(tiny_tiles: None, shape: Any, ties: bool, name: str) -> None:
    with backend(name):
        every_call_is_exact(shape, ties)


@NAMES
def test_what_is_no_number_is_never_drawn(tiny_tiles: None, name: str) -> None:
    with backend(name):
        what_is_no_number_is_never_drawn()


@NAMES
@pytest.mark.parametrize("repeated", ["drop", "keep"])
@pytest.mark.parametrize("top_m", [4, 7, 40])
def test_every_place_is_drawn_equally_often(top_m: int, repeated: str, name: str) -> None:
    with backend(name):
        every_place_is_drawn_equally_often(top_m, repeated)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_scores_are_those_of_the_best(dtype: torch.dtype, name: str) -> None:
    with backend(name):
        real_scores_are_those_of_the_best(dtype, 24)


def test_float64_is_not_rounded() -> None:
    e = torch.tensor([[1.0], [1.0 + 2**-40], [0.5]], dtype=torch.float64)
    q = torch.ones(30, 1, dtype=torch.float64)
    own = torch.arange(3).expand(30, 3)
    assert set(rerank_negatives(q, e, own, 1).tolist()) == {1}
    assert set(rerank_negatives(q, e, own, 2).tolist()) == {0, 1}


def test_top_m_and_seed_are_read_from_tensors() -> None:
    q, e, own = whole(50, 3), whole(30, 3), torch.randint(30, (50, 9))
    for top_m, seed in ((1, 0), (4, 2**62 + 9), (100, -7)):
        tensors = torch.tensor(top_m), torch.tensor(seed)
        ours = rerank_negatives(q, e, own, tensors[0], seed=tensors[1])
        assert torch.equal(ours, rerank_negatives(q, e, own, top_m, seed=seed))
        assert ours.tolist() == expected(q, e, own, top_m, seed=seed)
    for below in (0, -1, -(2**63)):
        assert (rerank_negatives(q, e, own, torch.tensor(below)) == -1).all()
    one, two = (rerank_negatives(q, e, own, 9, seed=s) for s in (1, 2**64 + 1))
    assert torch.equal(one, two)  # the low 64 bits count
    assert rerank_negatives(q, e, own, 2**63 - 1).tolist() == expected(q, e, own, 9)


def test_a_user_of_a_large_csr_may_forbid_everything() -> None:
    q, e = whole(4, 3), whole(9, 3)
    lists = [[0], list(range(9)), [2, 2, 3]]
    csr = SeenItems.from_lists(lists)
    rows = torch.tensor([1, 0, 2, 1])
    own = torch.tensor([[4, 5], [0, 0], [2, 4], [-1, -1]])
    ours = rerank_negatives(q, e, own, 5, forbidden=csr._replace(rows=rows))
    assert ours.tolist() == [-1, -1, 4, -1]
    shared = torch.tensor([3, 0, 3])
    ours = rerank_negatives(q, e, own, 1, shared=shared, forbidden=csr._replace(rows=rows))
    assert ours.tolist() == expected(
        q, e, own, 1, shared, forbidden=[lists[u] for u in rows.tolist()]
    )


def test_forbidden_items_below_the_first_are_ignored() -> None:
    q, e = torch.ones(2, 1), torch.arange(6)[:, None].float()
    met = SeenItems.from_lists([[0, 1, 5], [5, 0]])
    own = torch.tensor([[3, 4, 5], [2, 5, 5]])
    ours = rerank_negatives(q, e, own, 1, first_item=2, forbidden=met)
    assert ours.tolist() == [4, 2]


def test_strided_and_expanded_inputs() -> None:
    q, e = torch.randn(8, 50).T, torch.randn(300, 16)[:, ::2]
    own = torch.randint(300, (12, 50)).T
    shared = torch.randint(300, (20,))[::2]
    straight = (q.contiguous(), e.contiguous(), own.contiguous(), 5)
    for options in ({}, {"shared": shared}):
        plain = {k: x.contiguous() for k, x in options.items()}
        ours = rerank_negatives(q, e, own, 5, **options)
        assert torch.equal(ours, rerank_negatives(*straight, **plain))
    ours = rerank_negatives(q, e, own[:1].expand(50, 12), 5, shared=shared[:1].expand(4))
    again = rerank_negatives(q, e, own[:1].repeat(50, 1), 5, shared=shared[:1].repeat(4))
    assert torch.equal(ours, again)
    assert torch.equal(rerank_negatives(q[:1].expand(5, 8), e, own[:5], 1), ours.new_tensor(
        [int(own[b][(e[own[b]] @ q[0]).argmax()]) for b in range(5)]
    ))  # fmt: skip


def test_autocast_is_ignored() -> None:
    q, e = torch.randn(40, 32), torch.randn(90, 32)
    own = torch.randint(90, (40, 60))
    plain = rerank_negatives(q, e, own, 9, shared=torch.arange(50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, rerank_negatives(q, e, own, 9, shared=torch.arange(50)))


def test_inputs_that_want_gradients_give_none() -> None:
    q, e = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    ours = rerank_negatives(q, e, torch.randint(9, (4, 5)), 2)
    assert not ours.requires_grad


def test_no_candidates_rows_are_gathered_for_the_whole_batch() -> None:
    b, c, s, v, d = 600, 100, 100, 2000, 64
    own, shared = torch.randint(v, (b, c)), torch.randperm(v)[:s]
    q, e = torch.randn(b, d), torch.randn(v, d)
    problem = Problem(q, e, own, shared, None, torch.tensor(9), torch.tensor(0), True, 0)
    with Watch() as watch:
        blocked.forward(problem)
    assert watch.largest <= max(16 * c * d * 4, blocked.FLOATS * 4 + 2**18) < b * c * d * 4 / 3


def test_opcheck_and_compiled_equals_eager() -> None:
    q, e, own = torch.randn(4, 4), torch.randn(90, 4), torch.randint(90, (4, 7))
    met, shared = SeenItems.from_lists([[3, 3, 80], [], [1], [2]]), torch.tensor([1, 5, 5])
    numbers = (torch.tensor(3), torch.tensor(9))
    for drop in (True, False):
        torch.library.opcheck(OPERATOR, (q, e, own, shared, *met, *numbers, drop, 0, "blocked"))
    torch.library.opcheck(
        OPERATOR, (q, e, None, shared, None, None, None, *numbers, True, 1, "blocked")
    )

    def call(top_m: Any, seed: Any, ids: Any, some: Any) -> Any:
        return rerank_negatives(
            q, e, ids, top_m, shared=shared, forbidden=some, seed=seed, repeated="keep"
        )

    compiled = torch.compile(call, fullgraph=True)
    eager = call(3, 9, own, met)
    assert torch.equal(compiled(3, 9, own, met), eager)
    assert torch.equal(compiled(*numbers, own, met), eager)
    # nobody reads ids in there: the rows they stand in are -1
    wrong, lists = own.clone(), met.ids.clone()
    wrong[1, 3], lists[-1] = 90, -5
    ours = compiled(3, 9, wrong, met._replace(ids=lists))
    assert ours.tolist() == [eager[0], -1, eager[2], -1]


def test_arguments_are_named_with_their_value() -> None:
    q, e, own = torch.randn(2, 4), torch.randn(6, 4), torch.tensor([[0, 1, -1], [5, 2, 2]])
    for kind, message, change in (
        (ValueError, "candidates and shared are both None", {"candidates": None}),
        (ValueError, r"candidates must be \[2, C\], not \(3, 3\)", {"candidates": own[[0, 0, 1]]}),
        (ValueError, r"candidates must be \[2, C\], not \(3,\)", {"candidates": own[0]}),
        (TypeError, "candidates must be int64, not torch.int32", {"candidates": own.int()}),
        (IndexError, r"candidates\[1, 0\] is 5; it must be in \[0, 5\) or -1", {"items": e[:5]}),
        (IndexError, r"candidates\[0, 0\] is 0; it must be in \[2, 6\) or -1", {"first_item": 2}),
        (ValueError, r"shared must be \[S\], not \(2, 3\)", {"shared": own}),
        (TypeError, "shared must be int64, not torch.float32", {"shared": own[0].float()}),
        (IndexError, r"shared\[1\] is -2", {"shared": torch.tensor([3, -2])}),
        (ValueError, "top_m is 0; it must be in", {"top_m": 0}),
        (TypeError, "top_m must be an int or a 0-d int64 tensor, not float", {"top_m": 1.0}),
        (TypeError, "top_m must be an int or a 0-d int64 tensor, not bool", {"top_m": True}),
        (TypeError, "top_m must be int64, not torch.int32", {"top_m": torch.tensor(1).int()}),
        (ValueError, r"top_m must have no dimension, not shape \(1,\)", {"top_m": own[0, :1]}),
        (TypeError, "seed must be an int or a 0-d int64 tensor, not float", {"seed": 1.0}),
        (ValueError, r"seed must have no dimension, not shape \(1,\)", {"seed": own[0, :1]}),
        (ValueError, "repeated is 'once'; it must be one of 'drop', 'keep'", {"repeated": "once"}),
        (TypeError, "forbidden must be a SeenItems, not list", {"forbidden": [[1], [2]]}),
        (
            ValueError,
            "forbidden holds 1 rows but queries 2; give forbidden.rows or one row a query",
            {"forbidden": SeenItems.from_lists([[1]])},
        ),
        (
            IndexError,
            r"forbidden.ids\[1\] is 6; it must be in \[0, 6\)",
            {"forbidden": SeenItems.from_lists([[0], [6]])},
        ),
        (ValueError, "first_item is 6", {"first_item": 6}),
        (TypeError, "queries are torch.float32 but items are torch.float16", {"items": e.half()}),
    ):
        arguments: dict[str, Any] = {"queries": q, "items": e, "candidates": own, "top_m": 2}
        with pytest.raises(kind, match=message):
            rerank_negatives(**(arguments | change))
