"""Second views against a scan of all rows in Python, and against the statistics of Beauty."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from little import jagged

from seqrec.data.log import read_log
from seqrec.data.split import split_log
from seqrec.data.store import SequenceStore
from seqrec.methods.positives import (
    LastDiffering,
    RandomDiffering,
    same_target_rows,
    window_kinds,
)

Rows = list[tuple[tuple[int, ...], int]]


def log(seed: int, users: int = 60) -> list[list[int]]:
    """Few items, so that inputs repeat, also as the cut ends of different histories."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, rng.integers(0, 9)).tolist() for _ in range(users)]


def prefixes(sequences: list[list[int]], length: int) -> Rows:
    return [
        (tuple(row[max(0, t - length) : t]), row[t])
        for row in sequences
        for t in range(1, len(row))
    ]


def candidates(rows: Rows, row: int) -> list[int]:
    """The rows with the same target and another input."""
    items, target = rows[row]
    return [n for n, (other, its) in enumerate(rows) if its == target and other != items]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_published_rule_is_the_last_that_differs(length: int, seed: int) -> None:
    sequences = log(seed)
    rows = prefixes(sequences, length)
    targets, inputs = same_target_rows(SequenceStore(jagged(*sequences)), length)
    wanted = [(candidates(rows, row) or [row])[-1] for row in range(len(rows))]
    everything = np.arange(len(rows))
    found = LastDiffering(targets, inputs)
    assert found.of(everything, 0).tolist() == found.of(everything, 5).tolist() == wanted
    shuffled = np.random.default_rng(0).permutation(everything)
    assert found.of(shuffled, 0).tolist() == [wanted[row] for row in shuffled]
    lasts = {target: row for row, (_, target) in enumerate(rows)}
    assert any(row != lasts[rows[row][1]] for row in wanted)  # not just the last of the group


@pytest.mark.parametrize("length", [1, 3, 8])
def test_the_random_rule_draws_every_candidate_alike_and_nothing_else(length: int) -> None:
    sequences = log(3, users=25)
    rows = prefixes(sequences, length)
    store = SequenceStore(jagged(*sequences))
    found = RandomDiffering(*same_target_rows(store, length), seed=2**40 + 11)
    everything, epochs = np.arange(len(rows)), 400
    drawn = np.stack([found.of(everything, epoch) for epoch in range(epochs)])
    statistic, freedom = 0.0, 0
    for row in everything:
        allowed = candidates(rows, int(row)) or [int(row)]
        counts = Counter(drawn[:, row].tolist())
        assert set(counts) <= set(allowed)
        expected = epochs / len(allowed)
        statistic += sum((counts[n] - expected) ** 2 / expected for n in allowed)
        freedom += len(allowed) - 1
    # chi-square has mean `freedom` and variance 2 `freedom`
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
    assert freedom > 300
    part = np.array([5, 2, 5])  # a draw belongs to its row and epoch, not to the batch
    assert found.of(part, 7).tolist() == drawn[7, part].tolist()
    other = RandomDiffering(*same_target_rows(store, length), seed=1).of(everything, 7)
    assert (other != drawn[7]).any()


def test_a_target_that_one_row_has_is_its_own_view() -> None:
    store = SequenceStore(jagged([1, 2, 3], [1, 2], [4, 4, 4]))
    rows = prefixes([[1, 2, 3], [1, 2], [4, 4, 4]], 2)
    assert rows == [((1,), 2), ((1, 2), 3), ((1,), 2), ((4,), 4), ((4, 4), 4)]
    targets, inputs = same_target_rows(store, 2)
    for rule in (LastDiffering(targets, inputs), RandomDiffering(targets, inputs, 0)):
        assert rule.of(np.arange(5), 0).tolist() == [0, 1, 2, 4, 3]


def test_no_rows_at_all() -> None:
    targets, inputs = same_target_rows(SequenceStore(jagged([], [1], [2])), 5)
    for rule in (LastDiffering(targets, inputs), RandomDiffering(targets, inputs, 0)):
        assert rule.of(np.arange(0), 0).tolist() == []


def test_windows_are_numbered_alike_exactly_where_they_are_equal() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2, 300)
    starts = rng.integers(0, 280, 2000)
    lengths = rng.integers(1, 21, 2000)
    kinds = window_kinds(values, starts, lengths)
    by_content = defaultdict(set)
    for start, length, kind in zip(starts, lengths, kinds, strict=True):
        by_content[tuple(values[start : start + length])].add(int(kind))
    assert all(len(found) == 1 for found in by_content.values())
    assert len(set(kinds.tolist())) == len(by_content) < 2000


def test_the_statistics_of_the_published_rule_on_beauty(real_log: Callable[[str], Path]) -> None:
    store = SequenceStore(split_log(read_log(real_log("Beauty.txt"))).train)
    targets, inputs = same_target_rows(store, 50)
    rows = np.arange(store.n_prefixes)
    found = LastDiffering(targets, inputs).of(rows, 0)
    last = {target: row for row, target in enumerate(targets.tolist())}
    groups = Counter(targets.tolist())
    alone = np.array([groups[target] == 1 for target in targets.tolist()])
    assert alone.sum() == 289
    assert (found[alone] == rows[alone]).all()
    is_last = found == np.array([last[target] for target in targets.tolist()])
    lengths = np.minimum(store.prefix_index()[1], 50)
    # the published figures count the groups with someone to choose
    assert round(100 * np.mean(is_last & ~alone), 1) == 90.7
    assert round(100 * len(np.unique(found[~alone])) / len(rows), 1) == 17.9
    assert round(float(lengths[found].mean()), 1) == 3.4
