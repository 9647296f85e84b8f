"""catalog_topk against a sort in Python, ties, holes and paddings included."""

from __future__ import annotations

import random

import oracles
import pytest
import torch
from oracles import Watch
from ranking_calls import random_seen, whole

from seqrec_kernels import SeenItems, backend, catalog_topk
from seqrec_kernels.ops.catalog_topk import blocked

OPERATOR = torch.ops.seqrec_kernels.catalog_topk.default


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("values", ["whole", "real", "one"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 4), (17, 63, 5), (20, 130, 50), (5, 700, 3)])
def test_the_order_is_score_then_lowest_id(
    tiny_tiles: None, shape: tuple[int, int, int], values: str, name: str
) -> None:
    random.seed(1)
    b, v, d = shape
    if values == "real":
        # whole numbers times a distinct power: exact products, few ties
        q, e = whole(b, d), whole(v, d) * 64 + torch.rand(v, 1).mul(1024).round() / 1024
    else:
        q, e = whole(b, d), whole(v, d)
    if values == "one":
        q.zero_()  # every score ties with every other
    lists = random_seen(b, v, 20)
    scores = (q.double() @ e.double().T).tolist()
    for first in {0, min(3, v - 1)}:
        for seen in (None, SeenItems.from_lists(lists)):
            met = None if seen is None else [set(row) for row in lists]
            for k in (1, 3, 20, v, v + 5):
                with backend(name):
                    ours = catalog_topk(q, e, k, first_item=first, seen=seen)
                expected = oracles.topk(scores, k, first, met)
                assert ours.ids.dtype == torch.int64 and ours.scores.dtype == torch.float32
                assert ours.ids.tolist() == expected
                for row, ids in enumerate(expected):
                    values_ = [scores[row][i] if i >= 0 else -torch.inf for i in ids]
                    assert ours.scores[row].tolist() == pytest.approx(values_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_real_scores_in_real_tiles_equal_the_reference(dtype: torch.dtype, k: int) -> None:
    b, v = 150, 70_000
    q, e = torch.randn(b, 16).to(dtype), torch.randn(v, 16).to(dtype)
    seen = SeenItems.from_lists(random_seen(b, v, 40))
    assert v > blocked.SPAN * blocked.WIDTH  # more than one span
    ours = catalog_topk(q, e, k, seen=seen)
    with backend("reference"):
        plain = catalog_topk(q, e, k, seen=seen)
    torch.testing.assert_close(ours.scores, plain.scores)
    # the same items, up to neighbours that two roundings of one sum may swap
    assert (ours.ids != plain.ids).float().mean() < 1e-3
    exact = (q.double()[:, None] * e.double()[ours.ids]).sum(2)
    torch.testing.assert_close(ours.scores.double(), exact, rtol=1e-5, atol=1e-4)
    assert (ours.scores[:, 1:] <= ours.scores[:, :-1]).all()


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_what_is_no_score_is_never_returned(tiny_tiles: None, name: str) -> None:
    v = 150
    q, e, bias = torch.ones(2, 1), torch.zeros(v, 1), torch.zeros(v)
    e[::2] = torch.nan
    e[3], e[7], e[11] = torch.inf, -torch.inf, 5.0
    bias[5:] = torch.where(torch.arange(5, v) % 4 == 1, -torch.inf, 0)
    bias[11] = 0.0
    with backend(name):
        ours = catalog_topk(q, e, 60, item_bias=bias)
    left = [i for i in range(1, v, 2) if i not in (3, 7, 11) and bias[i] == 0]
    expected = [3, 11, *left]
    assert ours.ids[0].tolist() == (expected + [-1] * 60)[:60]
    assert (ours.scores[ours.ids == -1] == -torch.inf).all()
    assert not ours.scores.isnan().any()


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_both_zeros_are_one_score_for_topk(name: str) -> None:
    q, e = torch.ones(1, 1), torch.tensor([[-0.0], [0.0], [-1.0], [0.0], [-0.0]])
    with backend(name):
        ours = catalog_topk(q, e, 4)
    assert ours.ids.tolist() == [[0, 1, 3, 4]]


def test_float64_strided_and_empty() -> None:
    e = torch.tensor([[1.0], [1.0 + 2**-40], [0.5]], dtype=torch.float64)
    ours = catalog_topk(torch.ones(1, 1, dtype=torch.float64), e, 2)
    assert ours.ids.tolist() == [[1, 0]] and ours.scores.dtype == torch.float64
    assert catalog_topk(torch.randn(0, 4), torch.randn(9, 4), 3).ids.shape == (0, 3)
    q, e = torch.randn(8, 5).T, torch.randn(300, 16)[:, ::2]
    straight = catalog_topk(q.contiguous(), e.contiguous(), 7)
    assert torch.equal(catalog_topk(q, e, 7).ids, straight.ids)


def test_repeating_a_call_repeats_its_bits() -> None:
    q, e = torch.randn(40, 8), torch.randn(3000, 8)
    one, two = catalog_topk(q, e, 10), catalog_topk(q, e, 10)
    assert torch.equal(one.scores, two.scores) and torch.equal(one.ids, two.ids)


def test_opcheck_and_compiled_equals_eager() -> None:
    random.seed(4)
    q, e = torch.randn(4, 4), torch.randn(90, 4)
    seen = SeenItems.from_lists([[3, 3, 80], [], [1], [2]])
    torch.library.opcheck(OPERATOR, (q, e, 5, None, 1, *seen, "blocked"))
    compiled = torch.compile(catalog_topk, fullgraph=True)
    ours, eager = compiled(q, e, 5, seen=seen), catalog_topk(q, e, 5, seen=seen)
    assert torch.equal(ours.scores, eager.scores) and torch.equal(ours.ids, eager.ids)
    ids = seen.ids.clone()
    ids[-1] = 90
    wrong = compiled(q, e, 5, seen=seen._replace(ids=ids))
    assert (wrong.ids[3] == -1).all() and (wrong.scores[3] == -torch.inf).all()
    assert torch.equal(wrong.ids[:3], eager.ids[:3])


def test_no_tensor_of_the_score_matrix_size() -> None:
    b, v, k = 1500, 20_000, 10
    with Watch() as watch:
        blocked.forward(torch.randn(b, 4), torch.randn(v, 4), k, None, 0, None)
    assert watch.largest <= 4 * blocked.ROWS * (v + blocked.WIDTH) < 4 * b * v / 8


def test_arguments_are_named_with_their_value() -> None:
    q, e = torch.randn(2, 4), torch.randn(6, 4)
    for kind, message, k, options in (
        (ValueError, "k is 0; it must be at least 1", 0, {}),
        (TypeError, "k must be an int, not float", 2.0, {}),
        (TypeError, "k must be an int, not bool", True, {}),
        (ValueError, r"item_bias must be \[6\]", 2, {"item_bias": torch.ones(5)}),
        (ValueError, "first_item is 9", 2, {"first_item": 9}),
        (IndexError, r"seen.ids\[0\] is 6", 2, {"seen": SeenItems.from_lists([[6], []])}),
    ):
        with pytest.raises(kind, match=message):
            catalog_topk(q, e, k, **options)  # type: ignore[arg-type]
