"""Random calls of rerank_negatives and what they must draw, for the files that test it."""

from __future__ import annotations

import random
from typing import Any

import oracles
import torch
from ranking_calls import random_seen, whole
from torch import Tensor

from seqrec_kernels import SeenItems, rerank_negatives

# rows, own candidates (None: none are given), shared ones (likewise), items, width
SHAPES = [
    (1, 1, None, 1, 1),
    (3, 4, None, 9, 4),
    (5, None, 7, 9, 4),
    (17, 6, 5, 20, 3),
    (33, 70, 65, 300, 16),
    (20, 130, 40, 100, 50),
    (66, 0, 3, 12, 8),
    (4, 5, 0, 30, 130),
    (0, 5, 6, 8, 4),
    (3, 0, None, 5, 2),
    (2, 200, 1100, 900, 5),
]
SEEDS = (0, 3, -(2**63), 2**40 + 17)


def with_empty(ids: Tensor) -> Tensor:
    ids[torch.rand(ids.shape) < 0.15] = -1
    return ids


def expected(
    queries: Tensor, items: Tensor, candidates: Tensor | None, top_m: int,
    shared: Tensor | None = None, **options: Any,
) -> list[int]:  # fmt: skip
    scores = (queries.double() @ items.double().T).tolist()
    own = [[]] * len(scores) if candidates is None else candidates.tolist()
    more = [] if shared is None else shared.tolist()
    return oracles.rerank(scores, [[*row, *more] for row in own], top_m, **options)


def every_call_is_exact(shape: tuple[int, int | None, int | None, int, int], ties: bool) -> None:
    """All top_m, both rules for repeats, forbidden items or none."""
    random.seed(1)
    b, c, s, v, d = shape
    q, e = whole(b, d), whole(v, d)
    if not ties:
        q[:, 0], e[:, 0] = 1, torch.randperm(v) / 1024  # exact still
    for first in {0, min(3, v - 1)}:
        own = None if c is None else with_empty(torch.randint(first, v, (b, c)))
        shared = None if s is None else with_empty(torch.randint(first, v, (s,)))
        met = random_seen(b, v, 12)
        slots = (c or 0) + (s or 0)
        for n, top_m in enumerate((1, 2, 5, slots // 2 + 1, slots, slots + 7)):
            for repeated in ("drop", "keep"):
                for forbidden in (None, met):
                    seed = SEEDS[n % len(SEEDS)]
                    top_m = max(top_m, 1)
                    ours = rerank_negatives(
                        q, e, own, top_m, shared=shared,
                        forbidden=None if forbidden is None else SeenItems.from_lists(forbidden),
                        repeated=repeated, first_item=first, seed=seed,
                    )  # fmt: skip
                    assert ours.dtype == torch.int64 and ours.shape == (b,)
                    assert ours.tolist() == expected(
                        q, e, own, top_m, shared, forbidden=forbidden, repeated=repeated, seed=seed
                    )


def what_is_no_number_is_never_drawn() -> None:
    nan, inf = torch.nan, torch.inf
    e = torch.tensor([[1.0], [nan], [-inf], [inf], [0.0], [-0.0]])
    q = torch.tensor([[1.0], [-1.0], [nan], [0.0]]).repeat(50, 1)
    own = torch.tensor([[0, 1, 2, 3, 4, 5, 1, -1]]).expand(200, 8)
    for top_m in range(1, 9):
        for shared in (None, torch.tensor([3, 2, 1, 5])):
            for repeated in ("drop", "keep"):
                ours = rerank_negatives(q, e, own, top_m, shared=shared, repeated=repeated, seed=5)
                right = expected(q, e, own, top_m, shared, repeated=repeated, seed=5)
                assert ours.tolist() == right
                assert (ours[2::4] == -1).all() and not (ours == 1).any()
    only = rerank_negatives(torch.ones(300, 1), e, own[:1].expand(300, 8), 99)
    assert set(only.tolist()) == {0, 2, 3, 4, 5}


def every_place_is_drawn_equally_often(top_m: int, repeated: str) -> None:
    """Chi-square of 12,000 rows' draws at a fixed seed, level 0.001 (Wilson and Hilferty)."""
    rows, v = 12_000, 40
    e = torch.arange(v)[:, None].float()
    own = torch.randperm(v).expand(rows, v)
    shared = torch.tensor([v - 1, v - 1])  # the best stands in three slots
    ours = rerank_negatives(
        torch.ones(rows, 1), e, own, top_m, shared=shared, repeated=repeated, seed=11
    )
    counts = torch.bincount(ours, minlength=v).double()
    slots = torch.zeros(v, dtype=torch.float64)
    more = 2 if repeated == "keep" else 0
    order = [v - 1] * more + list(range(v - 1, -1, -1))
    for item in order[:top_m]:
        slots[item] += 1
    right = slots / slots.sum() * rows
    assert (counts[slots == 0] == 0).all()
    there = slots > 0
    square = float(((counts - right)[there] ** 2 / right[there]).sum())
    free = int(there.sum()) - 1
    limit = free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3
    assert square < limit, (square, limit)


def real_scores_are_those_of_the_best(dtype: torch.dtype, width: int) -> None:
    """Every draw lies among the float64 best up to rounding, and no rank is beyond reach."""
    b, v, c, s, top_m = 60, 4000, 100, 90, 25
    q, e = torch.randn(b, width).to(dtype), torch.randn(v, width).to(dtype)
    own, shared = torch.randint(v, (b, c)), torch.randperm(v)[:s]
    scores = q.double() @ e.double().T
    slots = torch.cat((own, shared.expand(b, s)), 1)
    for seed in range(3):
        ours = rerank_negatives(q, e, own, top_m, shared=shared, seed=seed)
        assert (slots == ours[:, None]).any(1).all()
        drawn = scores.gather(1, ours[:, None])
        slack = 1e-6 * float(scores.abs().max()) * width**0.5
        for row in range(b):
            level = scores[row][slots[row].unique()]
            place = oracles.philox_word(seed, row, 0, 2) * top_m >> 32
            assert int((level > drawn[row] + slack).sum()) <= place
            assert int((level >= drawn[row] - slack).sum()) > place
