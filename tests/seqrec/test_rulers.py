"""The rulers against a plain sort of the whole catalogue, and against measured figures."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from seqrec.data import Jagged, Targets, read_log, split_log
from seqrec.evaluation import rulers
from seqrec.evaluation.misses import MISS, targets_in_input
from seqrec.evaluation.rulers import ItemToItem, Popularity

Sequences = list[list[int]]


def targets_of(inputs: Sequences, items: list[int]) -> Targets:
    return Targets(np.arange(len(items)), Jagged.from_lists(inputs), np.array(items))


def co_occurrence(train: Sequences) -> dict[tuple[int, int], float]:
    c: dict[tuple[int, int], float] = {}
    for row in train:
        for i, a in enumerate(row):
            for j in range(i + 1, min(i + 6, len(row))):
                b = row[j]
                c[a, b] = c.get((a, b), 0.0) + 1 / (j - i)
                c[b, a] = c.get((b, a), 0.0) + 0.5 / (j - i)
    return c


def plain_rank(
    train: Sequences, n_items: int, history: list[int], target: int, seen: str, scored: bool
) -> tuple[int, int]:
    """Sorts the catalogue by (score, count), both in ordinary floats; close scores are equal."""
    n = [sum(row.count(v) for row in train) for v in range(n_items)]
    c = co_occurrence(train)

    def standing(v: int) -> tuple[float, int]:
        if seen == "zero" and v in history:
            return 0.0, 0
        score = 0.0
        if scored:
            for d, h in enumerate(reversed(history[-5:]), start=1):
                if (h, v) in c:
                    score += c[h, v] / (d * math.sqrt(n[h] * n[v]))
        return round(score, 9), n[v]

    if seen == "exclude" and target in history:
        return MISS, 0
    left_out = set(history) if seen == "exclude" else set()
    others = [standing(v) for v in range(n_items) if v != target and v not in left_out]
    own = standing(target)
    return sum(other > own for other in others), sum(other == own for other in others)


@pytest.mark.parametrize("seen", ["exclude", "include", "zero"])
@pytest.mark.parametrize("ruler", [Popularity, ItemToItem])
def test_against_a_plain_sort(ruler, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(f"{ruler.name} {seen}")
    ties = misses = 0
    for case in range(60):
        n_items = draw.choice([4, 9, 25])
        # small catalogues and few events: repeats, ties and items that were never trained
        train = [draw.choices(range(n_items), k=draw.randint(0, 8)) for _ in range(6)]
        inputs = [draw.choices(range(n_items), k=draw.randint(1, 9)) for _ in range(12)]
        items = [draw.randrange(n_items) for _ in inputs]
        if case % 2:  # the same whether the rows are ranked at once or a few at a time
            monkeypatch.setattr(rulers, "_PAIRS_A_TURN", 30)
        targets = targets_of(inputs, items)
        found = ruler(Jagged.from_lists(train), n_items).rank(targets, seen)
        wanted = [
            plain_rank(train, n_items, history, target, seen, ruler is ItemToItem)
            for history, target in zip(inputs, items, strict=True)
        ]
        assert list(zip(*(f.tolist() for f in found), strict=True)) == wanted
        assert found[0].dtype == found[1].dtype == np.int64
        ties += sum(equal > 0 for _, equal in wanted)
        misses += int(targets_in_input(targets).sum())
    assert ties > 50 and misses > 50, "the logs show what they were made for"


def test_scores_that_are_equal_on_paper_tie() -> None:
    # 7 is reached from the newest item at distance 3 (1/3 over 1), 8 from the third-newest at
    # distance 1 (1 over 3): the same third, not the same float64
    train = [[0, 1, 2, 7], [5, 8], [0, 3], [5, 3], [1, 9], [2, 9], [6, 4]]
    ruler = ItemToItem(Jagged.from_lists(train), 10)
    targets = targets_of([[5, 6, 0]], [7])
    scores = ruler._scores(targets.inputs)
    found = dict(zip(scores.keys.tolist(), scores.values.tolist(), strict=True))
    assert found[7] == found[8] == round(2**40 / 3 / math.sqrt(2))


def test_a_higher_count_decides_between_equal_scores_and_below_them() -> None:
    # 1 and 2 follow 0 once each; 2 is trained no more often, so they tie; 3, 4 have no score
    train = [[0, 1], [0, 2], [3], [3], [4], [5, 5, 5]]
    ruler = ItemToItem(Jagged.from_lists(train), 7)
    greater, equal = ruler.rank(targets_of([[0]] * 6, [1, 2, 5, 3, 4, 6]), "exclude")
    assert greater.tolist() == [0, 0, 2, 3, 4, 5]
    assert equal.tolist() == [1, 1, 0, 0, 0, 0]


def test_a_miss_is_a_miss_in_a_catalogue_of_any_size() -> None:
    assert MISS > 10**9, "beyond any K"
    train = Jagged.from_lists([[0, 1, 0]])
    targets = targets_of([[0], [0]], [0, 1])
    for ruler in (Popularity(train, 2), ItemToItem(train, 2)):
        greater, equal = ruler.rank(targets, "exclude")
        assert greater.tolist() == [MISS, 0] and equal.tolist() == [0, 0]
        assert ruler.rank(targets, "include")[0].max() < 2
    assert targets_in_input(targets).tolist() == [True, False]


def test_unknown_seen_rule() -> None:
    ruler = Popularity(Jagged.from_lists([[0]]), 1)
    with pytest.raises(ValueError, match="exclude, include, zero"):
        ruler.rank(targets_of([[0]], [0]), "some")


def test_top() -> None:
    ruler = Popularity(Jagged.from_lists([[3, 1, 1], [3, 0, 1], [2]]), 5)
    assert ruler.top(3, []) == [(1, 3.0), (3, 2.0), (0, 1.0)]
    assert ruler.top(3, [1, 1, 0]) == [(3, 2.0), (2, 1.0), (4, 0.0)]
    assert ruler.top(9, [4]) == [(1, 3.0), (3, 2.0), (0, 1.0), (2, 1.0)]
    assert ruler.top(0, []) == []


def metrics(greater: np.ndarray, equal: np.ndarray, k: int = 10) -> tuple[float, float]:
    """HR@k and NDCG@k when tied items are shuffled, from the definition."""
    hit = np.clip((k - greater) / (equal + 1), 0, 1)
    gain = np.append(0, np.cumsum([1 / math.log2(place + 1) for place in range(1, k + 1)]))
    first, last = np.minimum(greater, k), np.minimum(greater + equal + 1, k)
    return float(hit.mean()), float(((gain[last] - gain[first]) / (equal + 1)).mean())


@pytest.mark.parametrize(
    "name, wanted",
    [
        # the contract's figures, but for two that a prototype measured with ties by lowest id:
        # there popularity on Beauty has NDCG .0055 (.00546 so, .00544 with shuffled ties) and
        # item-to-item on Toys HR .0912 (.09123 so, .09128 shuffled)
        ("Beauty.txt", {"popularity": (0.0115, 0.0054), "item-to-item": (0.0767, 0.0488)}),
        ("Toys_and_Games.txt", {"popularity": (0.0090, 0.0049), "item-to-item": (0.0913, 0.0592)}),
        ("ml-1m.txt", {"popularity": (0.0369, 0.0180), "item-to-item": (0.2512, 0.1454)}),
    ],
)
def test_measured_figures(real_log, name: str, wanted: dict[str, tuple[float, float]]) -> None:
    split = split_log(read_log(real_log(name)))
    for ruler in (Popularity(split.train, split.n_items), ItemToItem(split.train, split.n_items)):
        found = metrics(*ruler.rank(split.test, "exclude"))
        assert tuple(round(value, 4) for value in found) == wanted[ruler.name]


def test_no_array_of_users_times_catalogue() -> None:
    """The workspace follows the pairs that occur, not users times items."""
    import tracemalloc

    items, users = 100_000, 2_000
    draw = np.random.default_rng(0)
    train = Jagged(np.arange(0, users * 10 + 1, 10), draw.integers(0, items, users * 10))
    tracemalloc.start()
    ruler = ItemToItem(train, items)
    ruler.rank(Targets(np.arange(users), train, draw.integers(0, items, users)), "include")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < users * items / 4, "less than two bits a (user, item) pair"


def test_windows_do_not_cross_sequences() -> None:
    train = [[0, 1], [2, 3]]
    ruler = ItemToItem(Jagged.from_lists(train), 4)
    found = {divmod(int(key), 4) for key in ruler._scores(Jagged.from_lists([[1], [2]])).keys}
    assert found == {(0, 0), (1, 3)}
    assert all(a != b for a, b in pairwise(train))
