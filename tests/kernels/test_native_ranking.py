"""Rank and top-K in C++, in every instruction set, against comparisons counted one by one."""

from __future__ import annotations

import random

import oracles
import pytest
import torch
from native_versions import threads, version  # noqa: F401 (fixtures)
from ranking_calls import random_seen, rank_counts_every_comparison, whole

from seqrec_kernels import SeenItems, backend, catalog_rank, catalog_topk
from seqrec_kernels.ops.catalog_rank import native as rank
from seqrec_kernels.ops.catalog_topk import native as topk

SHAPES = [(1, 1, 1), (3, 2, 4), (17, 95, 5), (64, 97, 50), (65, 300, 3), (130, 96, 130)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["free", "excluded", "scored"])
@pytest.mark.parametrize("slots", [None, 3])
def test_rank_counts_every_comparison(
    shape: tuple[int, int, int],
    rule: str,
    slots: int | None,
    threads: int,  # noqa: F811
) -> None:
    rank_counts_every_comparison(shape, rule, slots, 30)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ties", [False, True])
def test_topk_orders_by_score_then_lowest_id(
    shape: tuple[int, int, int],
    ties: bool,
    threads: int,  # noqa: F811
) -> None:
    random.seed(2)
    b, v, d = shape
    q, e = whole(b, d), whole(v, d)
    if not ties:
        e += torch.rand(v, 1).mul(1024).round() / 1024
    lists = random_seen(b, v, 30)
    scores = (q.double() @ e.double().T).tolist()
    for first in {0, min(3, v - 1)}:
        for seen in (None, SeenItems.from_lists(lists)):
            met = None if seen is None else [set(row) for row in lists]
            for k in (1, 20, v, v + 5):
                ours = catalog_topk(q, e, k, first_item=first, seen=seen)
                assert ours.ids.tolist() == oracles.topk(scores, k, first, met)
                here = ours.ids >= 0
                picked = torch.tensor(scores).gather(1, ours.ids.clamp(min=0))
                assert torch.equal(ours.scores[here], picked[here].float())
                assert (ours.scores[~here] == -torch.inf).all()


def test_long_lists_are_cut_many_times(threads: int) -> None:  # noqa: F811
    # rising scores: every item enters the list of every query
    e = torch.linspace(-1, 1, 5000)[:, None]
    for k in (1, 7, 300, 5000):
        ours = catalog_topk(torch.ones(3, 1), e, k)
        assert ours.ids[0].tolist() == list(range(4999, 4999 - k, -1))
        level = catalog_topk(torch.zeros(3, 1), e, k)
        assert level.ids[2].tolist() == list(range(k))


@pytest.mark.parametrize("d", [1, 50, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rows_score_equal_bits_wherever_they_stand(d: int, dtype: torch.dtype) -> None:
    for b, v in ((1, 5), (66, 123), (5, 1111)):
        q, e = torch.randn(b, d).to(dtype), torch.randn(v, d).to(dtype)
        copies = torch.randperm(v)[: v // 2 + 1]
        e[copies] = torch.randn(d).to(dtype)
        y = copies[torch.randint(copies.shape[0], (b,))]
        bias = torch.randn(1).expand(v)
        assert (catalog_rank(q, e, y).equal == copies.shape[0] - 1).all()
        assert (catalog_rank(q, e, y, item_bias=bias).equal == copies.shape[0] - 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_scores_agree_with_float64(dtype: torch.dtype) -> None:
    b, v, d, k = 130, 3000, 100, 30
    q, e, y = torch.randn(b, d).to(dtype), torch.randn(v, d).to(dtype), torch.randint(v, (b,))
    scores = q.double() @ e.double().T
    target = scores.gather(1, y[:, None])
    slack = 1e-6 * float(scores.abs().max())
    ours = catalog_rank(q, e, y)
    assert ((scores > target + slack).sum(1) <= ours.greater).all()
    assert (ours.greater <= (scores > target - slack).sum(1) - 1).all()
    best = catalog_topk(q, e, k)
    torch.testing.assert_close(
        best.scores.double(), scores.gather(1, best.ids), rtol=1e-6, atol=slack
    )
    assert (best.scores[:, -1:] >= scores.topk(k, 1)[0][:, -1:] - slack).all()
    assert (best.scores[:, 1:] <= best.scores[:, :-1]).all()


def test_rank_and_topk_tell_the_same_story() -> None:
    q, e = torch.randn(70, 33), torch.randn(700, 33)
    best = catalog_topk(q, e, 50)
    ranks = catalog_rank(q, e, best.ids)
    assert torch.equal(ranks.greater, torch.arange(50).expand(70, 50))
    assert not ranks.equal.any()


def test_nan_infinities_and_both_zeros() -> None:
    q = torch.ones(4, 1)
    e = torch.tensor([[1.0], [torch.nan], [-torch.inf], [torch.nan], [2.0], [torch.inf], [0.0]])
    y = torch.tensor([2, 1, 0, 5])
    seen = SeenItems.from_lists([[], [1, 3, 4, 4], [], []])
    free, left = catalog_rank(q, e, y), catalog_rank(q, e, y, seen=seen)
    level = catalog_rank(q, e, y, seen=seen, seen_score=1.0)
    assert free.greater.tolist() == [4, 6, 2, 0] and not free.equal.any()
    assert left.greater.tolist() == [4, 4, 2, 0] and not left.equal.any()
    assert level.greater[1] == 1 and level.equal[1] == 3
    assert catalog_topk(q, e, 7).ids[0].tolist() == [5, 4, 0, 6, -1, -1, -1]
    zeros = torch.tensor([[-0.0], [0.0], [-1.0], [0.0], [-0.0]])
    best = catalog_topk(torch.ones(1, 1), zeros, 4)
    assert best.ids.tolist() == [[0, 1, 3, 4]] and not best.scores.signbit().any()
    assert catalog_rank(torch.ones(1, 1), zeros, torch.tensor([1])).equal.tolist() == [3]


def test_a_csr_that_nobody_checked_reads_nothing_outside() -> None:
    q, e, y = torch.randn(6, 4), torch.randn(80, 4), torch.randint(80, (6, 2))
    seen = SeenItems.from_lists([[1, 2], [3], [4], [5, 6], [], [7]])
    good, best = catalog_rank(q, e, y, seen=seen), catalog_topk(q, e, 5, seen=seen)
    ids, offsets, targets = seen.ids.clone(), seen.offsets.clone(), y.clone()
    ids[4] = 10**12  # row 3
    offsets[6] = 10**9  # row 5
    targets[0, 1] = -9
    rows = torch.tensor([0, 1, 99, 3, 4, 5])
    astray = SeenItems(offsets, ids, rows)
    greater, equal = rank.forward(q, e, targets, None, 0, astray, None)
    scores, found = topk.forward(q, e, 5, None, 0, astray)
    assert (greater[[2, 3, 5]] == -1).all() and (equal[[2, 3, 5]] == -1).all()
    assert greater[0, 1] == equal[0, 1] == -1 and greater[0, 0] == good.greater[0, 0]
    assert torch.equal(greater[[1, 4]], good.greater[[1, 4]])
    assert (found[[2, 3, 5]] == -1).all() and (scores[[2, 3, 5]] == -torch.inf).all()
    assert torch.equal(found[[0, 1, 4]], best.ids[[0, 1, 4]])
    none = SeenItems(torch.zeros(1, dtype=torch.int64), ids[:0], torch.zeros(6, dtype=torch.int64))
    assert (rank.forward(q, e, y, None, 0, none, None)[0] == -1).all()


def test_strided_expanded_and_empty_inputs() -> None:
    y, bias = torch.randint(90, (3, 5)).T, torch.randn(180)[::2]
    for q, e in (
        (torch.randn(5, 16)[:, ::2], torch.randn(8, 90).T),
        (torch.randn(1, 8).expand(5, 8), torch.randn(1, 8).expand(90, 8)),
        (torch.randn(8, 5).T, torch.randn(91, 8).half()[1:].float()),
    ):
        same = q.contiguous(), e.contiguous()
        ours = catalog_rank(q, e, y, item_bias=bias)
        straight = catalog_rank(*same, y.contiguous(), item_bias=bias.clone())
        assert torch.equal(ours.greater, straight.greater)
        assert torch.equal(ours.equal, straight.equal)
        assert torch.equal(catalog_topk(q, e, 9).ids, catalog_topk(*same, 9).ids)
    e, none = torch.randn(9, 4), torch.empty(0, dtype=torch.int64)
    empty = catalog_rank(torch.randn(0, 4), e, none, seen=SeenItems.from_lists([]))
    assert empty.greater.shape == (0,)
    assert catalog_rank(torch.randn(2, 4), e, none.expand(2, 0)).greater.shape == (2, 0)
    assert catalog_topk(torch.randn(0, 4), e, 3).ids.shape == (0, 3)
    flat = catalog_topk(torch.randn(2, 0), torch.randn(9, 0), 3)
    assert flat.ids.tolist() == [[0, 1, 2]] * 2 and not flat.scores.any()


@pytest.mark.parametrize("far", ["rows", "columns"])
def test_offsets_beyond_two_to_the_31(far: str) -> None:
    # 2**31 and more elements of address space, of which a few pages are ever touched
    storage = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    e = storage.as_strided((3, 3), (2**30, 1) if far == "rows" else (1, 2**30))
    values = torch.randn(3, 3).bfloat16()
    e.copy_(values)
    q, y = torch.randn(5, 3).bfloat16(), torch.tensor([0, 1, 2, 2, -1])
    assert torch.equal(catalog_rank(q, e, y).greater, catalog_rank(q, values, y).greater)
    ours, near = catalog_topk(q, e, 3), catalog_topk(q, values, 3)
    assert torch.equal(ours.ids, near.ids) and torch.equal(ours.scores, near.scores)


def test_compiled_equals_eager_and_the_reference() -> None:
    random.seed(3)
    q, e, y = whole(6, 4), whole(80, 4), torch.randint(80, (6, 2))
    seen = SeenItems.from_lists(random_seen(6, 80))
    eager, best = catalog_rank(q, e, y, seen=seen), catalog_topk(q, e, 5, seen=seen)
    ranked = torch.compile(catalog_rank, fullgraph=True, backend="aot_eager")(q, e, y, seen=seen)
    chosen = torch.compile(catalog_topk, fullgraph=True, backend="aot_eager")(q, e, 5, seen=seen)
    with backend("reference"):
        plain, sort = catalog_rank(q, e, y, seen=seen), catalog_topk(q, e, 5, seen=seen)
    for one in (ranked, plain):
        assert torch.equal(one.greater, eager.greater) and torch.equal(one.equal, eager.equal)
    for other in (chosen, sort):
        assert torch.equal(other.ids, best.ids) and torch.equal(other.scores, best.scores)
