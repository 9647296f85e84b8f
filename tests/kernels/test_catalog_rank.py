"""catalog_rank and rank_metrics against comparisons counted one by one."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from oracles import Watch
from ranking_calls import random_seen, rank_counts_every_comparison

from seqrec_kernels import Rank, SeenItems, backend, catalog_rank, rank_metrics
from seqrec_kernels.ops.catalog_rank import blocked
from seqrec_kernels.ops.scoring import ScoreTiles, exact_products

OPERATOR = torch.ops.seqrec_kernels.catalog_rank.default


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("slots", [None, 1, 3])
@pytest.mark.parametrize("rule", ["free", "excluded", "scored"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 4), (17, 63, 5), (40, 65, 50), (33, 300, 3)])
def test_counts_every_comparison(
    tiny_tiles: None, shape: tuple[int, int, int], rule: str, slots: int | None, name: str
) -> None:
    with backend(name):
        rank_counts_every_comparison(shape, rule, slots, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_scores_in_real_tiles_agree_with_float64(dtype: torch.dtype) -> None:
    b, v, d = 700, 1500, 24
    q, e, y = torch.randn(b, d).to(dtype), torch.randn(v, d).to(dtype), torch.randint(v, (b,))
    ours = catalog_rank(q, e, y)
    scores = q.double() @ e.double().T
    target = scores.gather(1, y[:, None])
    # a float32 sum may swap scores that are this close, and no others
    slack = 1e-5 * float(scores.abs().max())
    least = (scores > target + slack).sum(1)
    most = (scores > target - slack).sum(1) - 1
    assert (least <= ours.greater).all() and (ours.greater <= most).all()
    assert (most - least).float().mean() < 0.2  # the bracket means something
    assert (ours.equal <= most - least).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [1, 7, 50, 64, 123])
def test_equal_item_rows_score_equal_bits_wherever_they_stand(d: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for b in (1, 2, 5, 130):
            for v in (5, 123, 1111):
                # a table that begins off the cache lines: alignment must not decide either
                q, e = torch.randn(b, d), torch.randn(v + 1, d)[1:]
                copies = torch.randperm(v)[: v // 2 + 1]
                e[copies] = torch.randn(d)  # half the table is one and the same row
                y = copies[torch.randint(copies.shape[0], (b,))]
                ours = catalog_rank(q, e, y)
                assert (ours.equal == copies.shape[0] - 1).all(), (b, v, d)
                with backend("reference"):
                    assert torch.equal(catalog_rank(q, e, y).equal, ours.equal)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("d", [3, 50, 64])
def test_a_single_score_has_the_bits_of_its_tile(d: int) -> None:
    q, e, bias = torch.randn(37, d), torch.randn(700, d), torch.randn(700)
    tiles = ScoreTiles(q, e, bias, 2, 16, 128)
    for top, end in tiles.blocks():
        columns = torch.randint(698, (end - top, 9))
        single = tiles.at(columns)
        dense = torch.cat([tiles.tile(start).clone() for start in tiles.starts()], 1)
        assert torch.equal(single, dense.gather(1, columns))
        assert dense[:, 698:].isnan().all()


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_nan_ranks_below_every_number(tiny_tiles: None, name: str) -> None:
    q = torch.ones(4, 1)
    e = torch.tensor([[1.0], [torch.nan], [-torch.inf], [torch.nan], [2.0], [torch.inf], [0.0]])
    y = torch.tensor([2, 1, 0, 5])
    seen = SeenItems.from_lists([[], [1, 3, 4, 4], [], []])
    with backend(name):
        free = catalog_rank(q, e, y)
        left = catalog_rank(q, e, y, seen=seen)
        level = catalog_rank(q, e, y, seen=seen, seen_score=1.0)
    assert free.greater.tolist() == [4, 6, 2, 0] and free.equal.tolist() == [0, 0, 0, 0]
    # items 3 and 4 are left out, the target itself is ranked by its own NaN: 4 candidates
    assert left.greater.tolist() == [4, 4, 2, 0] and left.equal.tolist() == [0, 0, 0, 0]
    assert level.greater[1] == 1 and level.equal[1] == 3


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_both_zeros_are_one_score(name: str) -> None:
    q, e = torch.ones(1, 1), torch.tensor([[0.0], [-0.0], [0.0], [-0.0]])
    with backend(name):
        ours = catalog_rank(q, e, torch.tensor([1]))
    assert ours.greater.tolist() == [0] and ours.equal.tolist() == [3]


def test_one_csr_serves_every_batch() -> None:
    random.seed(2)
    lists = random_seen(12, 90, 6)
    whole_set = SeenItems.from_lists(lists)
    users = torch.tensor([5, 0, 5, 11])
    q, e, y = torch.randn(4, 8), torch.randn(90, 8), torch.randint(90, (4,))
    ours = catalog_rank(q, e, y, seen=whole_set._replace(rows=users))
    alone = catalog_rank(q, e, y, seen=SeenItems.from_lists([lists[int(u)] for u in users]))
    assert torch.equal(ours.greater, alone.greater) and torch.equal(ours.equal, alone.equal)


def test_float64_is_scored_in_float64() -> None:
    e = torch.tensor([[1.0], [1.0 + 2**-40], [1.0 - 2**-40]], dtype=torch.float64)
    ours = catalog_rank(torch.ones(1, 1, dtype=torch.float64), e, torch.tensor([0]))
    assert ours.greater.tolist() == [1] and ours.equal.tolist() == [0]


def test_autocast_and_low_precision_products_are_ignored() -> None:
    q, e, y = torch.randn(300, 64), torch.randn(900, 64), torch.randint(900, (300,))
    plain = catalog_rank(q, e, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = catalog_rank(q, e, y)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        low = catalog_rank(q, e, y)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert torch.equal(plain.greater, cast.greater) and torch.equal(plain.greater, low.greater)


def test_full_precision_lasts_until_the_last_thread_is_out() -> None:
    """The setting is the process's: a call that ends must not take it from one under way."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        first, second = exact_products("cpu"), exact_products("cpu")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert matmul.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


def test_strided_inputs_none_written_and_no_gradient() -> None:
    q, e = torch.randn(5, 16)[:, ::2].requires_grad_(), torch.randn(8, 90).T
    y, bias = torch.randint(90, (3, 5)).T, torch.randn(180)[::2]
    seen = SeenItems.from_lists(random_seen(5, 90, 6))
    copies = [t.detach().clone() for t in (q, e, y, bias, *seen[:2])]
    ours = catalog_rank(q, e, y, item_bias=bias, seen=seen)
    straight = catalog_rank(
        q.detach().contiguous(), e.contiguous(), y.contiguous(), item_bias=bias.clone(), seen=seen
    )
    assert torch.equal(ours.greater, straight.greater) and torch.equal(ours.equal, straight.equal)
    assert all(torch.equal(a, b) for a, b in zip((q, e, y, bias, *seen[:2]), copies, strict=True))
    assert not ours.greater.requires_grad
    wide = catalog_rank(torch.randn(1, 8).expand(5, 8), e[:1].expand(90, 8), y)
    assert (wide.greater == 0).all() and (wide.equal == 89).all()


def test_empty_batches_and_slots() -> None:
    e, none = torch.randn(9, 4), torch.empty(0, dtype=torch.int64)
    ours = catalog_rank(torch.randn(0, 4), e, none, seen=SeenItems.from_lists([]))
    assert ours.greater.shape == ours.equal.shape == (0,)
    assert catalog_rank(torch.randn(2, 4), e, none.view(0).expand(2, 0)).greater.shape == (2, 0)


def test_opcheck_and_compiled_equals_eager() -> None:
    random.seed(3)
    q, e, y = torch.randn(6, 4), torch.randn(80, 4), torch.randint(80, (6, 2))
    seen = SeenItems.from_lists(random_seen(6, 80, 6))
    torch.library.opcheck(OPERATOR, (q, e, y, None, 0, *seen, None, "blocked"))
    compiled = torch.compile(catalog_rank, fullgraph=True)
    ours, eager = compiled(q, e, y, seen=seen), catalog_rank(q, e, y, seen=seen)
    assert torch.equal(ours.greater, eager.greater) and torch.equal(ours.equal, eager.equal)
    # ids that nobody checked: the place of a wrong target, the whole row of a wrong seen id
    y = y.clone()
    y[0, 0], y[1, 1] = 80, -7
    ids = seen.ids.clone()
    ids[seen.offsets[3]] = 10**12
    assert seen.offsets[4] > seen.offsets[3]
    wrong = compiled(q, e, y, seen=seen._replace(ids=ids))
    bad = torch.zeros(6, 2, dtype=torch.bool)
    bad[0, 0] = bad[1, 1] = bad[3] = True
    assert (wrong.greater[bad] == -1).all() and (wrong.equal[bad] == -1).all()
    assert torch.equal(wrong.greater[~bad], eager.greater[~bad])
    rows = torch.tensor([0, 1, 99, 3, -1, 5])
    astray = compiled(q, e, y, seen=seen._replace(rows=rows)).greater
    assert (astray[[2, 4]] == -1).all() and torch.equal(astray[5], eager.greater[5])


def test_arguments_are_named_with_their_value() -> None:
    q, e, y = torch.randn(2, 4), torch.randn(6, 4), torch.tensor([1, 2])
    seen = SeenItems.from_lists([[1], [2, 3]])
    o, i = seen.offsets, seen.ids
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, r"seen_score is 0.0 but seen is None", (q, e, y), {"seen_score": 0.0}),
        (ValueError, r"seen_score is nan", (q, e, y), {"seen": seen, "seen_score": math.nan}),
        (TypeError, r"seen_score must be a float", (q, e, y), {"seen": seen, "seen_score": "0"}),
        (TypeError, r"seen must be a SeenItems, not tuple", (q, e, y), {"seen": (o, i)}),
        (ValueError, r"seen holds 1 rows but queries 2", (q, e, y), {"seen": SeenItems(o[:2], i)}),
        (TypeError, r"seen.ids must be int64", (q, e, y), {"seen": SeenItems(o, i.int())}),
        (ValueError, r"seen.offsets is empty", (q, e, y), {"seen": SeenItems(o[:0], i)}),
        (ValueError, r"seen.rows must be \[2\]", (q, e, y), {"seen": SeenItems(o, i, o)}),
        (IndexError, r"seen.rows\[1\] is 2", (q, e, y), {"seen": SeenItems(o, i, o[:2] * 2)}),
        (IndexError, r"seen.ids\[2\] is 9", (q, e, y), {"seen": SeenItems(o, i + i // 3 * 6)}),
        (IndexError, r"seen.offsets end at 3", (q, e, y), {"seen": SeenItems(o, i[:2])}),
        (IndexError, r"never fall", (q, e, y), {"seen": SeenItems(o.flip(0), i)}),
        (IndexError, r"targets\[0\] is 6", (q, e, y + 5), {}),
        (ValueError, r"targets must be \[2\] or \[2, T\]", (q, e, y[:1]), {}),
        (ValueError, r"first_item is 6", (q, e, y), {"first_item": 6}),
        (TypeError, r"but items are torch.float64", (q, e.double(), y), {}),
    ]  # fmt: skip
    for kind, message, arguments, options in cases:
        with pytest.raises(kind, match=message):
            catalog_rank(*arguments, **options)


def test_no_tensor_of_the_score_matrix_size() -> None:
    b, v = 3000, 4000
    q, e, y = torch.randn(b, 4), torch.randn(v, 4), torch.randint(v, (b,))
    seen = SeenItems.from_lists([[1, 2]] * b)
    with Watch() as watch:
        blocked.forward(q, e, y, None, 0, seen, None)
    # the bool mask of the score matrix would be b * v bytes
    assert watch.largest <= 4 * blocked.ROWS * blocked.WIDTH < b * v / 8


# ---- rank_metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
def test_metrics_are_averages_over_the_places_of_a_tie(ties: str) -> None:
    rank = Rank(torch.tensor([[0, 4], [3, -1], [19, 100]]), torch.tensor([[0, 3], [9, -1], [1, 0]]))
    ours = rank_metrics(rank, ks=(1, 5, 20), ties=ties)
    for k in (1, 5, 20):
        sums = {"HR": 0.0, "NDCG": 0.0, "MRR": 0.0}
        for g, n in ((0, 0), (4, 3), (3, 9), (19, 1), (100, 0)):
            places = range(g + 1, g + n + 2)
            if ties == "optimistic":
                places = range(g + 1, g + 2)
            if ties == "pessimistic":
                places = range(g + n + 1, g + n + 2)
            for p in places:
                share = (p <= k) / len(places)
                sums["HR"] += share
                sums["NDCG"] += share / math.log2(p + 1)
                sums["MRR"] += share / p
        for name, total in sums.items():
            assert ours[f"{name}@{k}"] == pytest.approx(total / 5, abs=1e-12)
    assert list(ours)[:4] == ["HR@1", "NDCG@1", "MRR@1", "HR@5"]


def test_a_shuffled_tie_is_the_expected_value() -> None:
    rank = Rank(torch.tensor([3]), torch.tensor([9]))
    # HR@K = clip((K - greater) / (equal + 1), 0, 1)
    assert rank_metrics(rank, ks=(5,))["HR@5"] == pytest.approx(0.2)


def test_metrics_without_targets_and_wrong_arguments() -> None:
    none = Rank(torch.tensor([-1]), torch.tensor([-1]))
    assert set(rank_metrics(none).values()) == {0.0} and len(rank_metrics(none)) == 9
    with pytest.raises(ValueError, match="ties is 'random'"):
        rank_metrics(none, ties="random")
    with pytest.raises(ValueError, match="ks is 0"):
        rank_metrics(none, ks=(0,))
    with pytest.raises(ValueError, match=r"rank.greater is \(1,\)"):
        rank_metrics(Rank(torch.tensor([1]), torch.tensor([1, 2])))
    with pytest.raises(TypeError, match=r"rank.equal must be int64, not torch\.float32"):
        rank_metrics(Rank(torch.tensor([1]), torch.tensor([1.0])))
