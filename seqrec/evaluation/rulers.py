"""The two counting baselines that every run is measured against.

Both rank by integer counts of the training sequences, and both give ranks under the same rules as
``seqrec_kernels.catalog_rank``: the candidates are all items but the target, the seen ones left out
(``exclude``), kept (``include``) or scored 0 (``zero``), and the target is always ranked.

All items stand in one order: by score, and among equal scores by training count. So popularity
fills up below the last item with a score, down to the items that were never trained. Popularity
itself has no scores, only counts. Items with equal score and count are tied. A seen item under
``zero`` gets score 0 and count 0: the very end, level with what was never trained.

Scores are compared as whole multiples of 2^-40: sums that are equal on paper differ in the last
bits of a float64 (1/3 and 1 over 3), and such noise must not decide a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from seqrec.data.split import Jagged, Targets
from seqrec.evaluation.misses import with_misses

SEEN_RULES = ("exclude", "include", "zero")
WINDOW = 5
# 1/1 .. 1/5 and their halves are whole multiples of 1/120: counting in these units is exact
_UNIT = 120
# (row, item) pairs looked at in one turn: some 100 MB of workspace, whatever the catalogue
_PAIRS_A_TURN = 2_000_000


@dataclass(frozen=True)
class _Scores:
    """The items with a score, for a block of rows: no two pairs equal, ordered by (row, item)."""

    keys: np.ndarray  # int64 [n]: row * n_items + item
    values: np.ndarray  # int64 [n], at least 1: the score in units of 2^-40


class Popularity:
    """Ranks by training count.

    Args:
        train: the sequences that may be counted.
        n_items: size of the catalogue.
    """

    name = "popularity"

    def __init__(self, train: Jagged, n_items: int) -> None:
        self.n_items = n_items
        self.counts = np.bincount(train.values, minlength=n_items)
        self._ascending = np.sort(self.counts)

    def rank(self, targets: Targets, seen: str) -> tuple[np.ndarray, np.ndarray]:
        """Candidates before and level with each target: int64 [B] each.

        Args:
            targets: what to rank, with the inputs that the seen rule looks at.
            seen: "exclude", "include" or "zero". Under "exclude" a target that its own input
                holds is a miss (``with_misses``).
        """
        if seen not in SEEN_RULES:
            raise ValueError(f"seen must be one of {', '.join(SEEN_RULES)}, not {seen!r}")
        greater = np.empty(len(targets.items), dtype=np.int64)
        equal = np.empty(len(targets.items), dtype=np.int64)
        for start, end in self._turns(targets.inputs):
            block = targets.inputs.take(np.arange(start, end))
            ranks = self._rank_block(block, targets.items[start:end], seen)
            greater[start:end], equal[start:end] = ranks
        return with_misses(greater, equal, targets, seen)

    def top(self, k: int, exclude: list[int]) -> list[tuple[int, float]]:
        """The k most trained items outside ``exclude`` as (item, count); ties by lowest item."""
        order = np.argsort(-self.counts, kind="stable")[: k + len(set(exclude))]
        left_out = set(exclude)
        return [(int(v), float(self.counts[v])) for v in order if int(v) not in left_out][:k]

    def _scores(self, inputs: Jagged) -> _Scores:
        """Scores of a block of inputs; the popularity ruler has none."""
        return _Scores(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    def _cost(self, inputs: Jagged) -> np.ndarray:
        """About how many (row, item) pairs each row brings into a turn, int64 [B]."""
        return inputs.lengths() + 1

    def _turns(self, inputs: Jagged) -> Iterator[tuple[int, int]]:
        """Blocks of rows that fit the workspace."""
        total = np.cumsum(self._cost(inputs))
        start = 0
        while start < len(inputs):
            done = total[start - 1] if start else 0
            end = int(np.searchsorted(total, done + _PAIRS_A_TURN, side="right"))
            end = max(end, start + 1)
            yield start, end
            start = end

    def _rank_block(
        self, inputs: Jagged, items: np.ndarray, seen: str
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = len(inputs)
        target_keys = np.arange(rows) * self.n_items + items
        scores = self._scores(inputs)
        seen_keys = np.empty(0, dtype=np.int64)
        if seen != "include":
            seen_keys = np.unique(inputs.row_of_values() * self.n_items + inputs.values)
        target_seen = _contains(seen_keys, target_keys)
        others = seen_keys[~_contains(target_keys, seen_keys)]
        lost = _contains(seen_keys, scores.keys)
        scores = _Scores(scores.keys[~lost], scores.values[~lost])
        count = self.counts[items]
        if seen == "zero":
            count = np.where(target_seen, 0, count)

        score = _look_up(scores, target_keys)

        # candidates with a score: compared one by one
        row, item = np.divmod(scores.keys, self.n_items)
        level = scores.values == score[row]
        above = (scores.values > score[row]) | (level & (self.counts[item] > count[row]))
        level &= self.counts[item] == count[row]
        greater = np.bincount(row[above], minlength=rows)
        equal = np.bincount(row[level], minlength=rows) - (score > 0)  # the target is no candidate

        # candidates without one matter to targets without one: the whole catalogue by count, less
        # who was looked at above, is left out, or is the target
        first_level = np.searchsorted(self._ascending, count, side="left")
        first_above = np.searchsorted(self._ascending, count, side="right")
        more, same = self.n_items - first_above, first_above - first_level
        for keys in (scores.keys, others, target_keys):
            row, item = np.divmod(keys, self.n_items)
            more = more - np.bincount(row[self.counts[item] > count[row]], minlength=rows)
            same = same - np.bincount(row[self.counts[item] == count[row]], minlength=rows)
        if seen == "zero":
            at_the_end = np.bincount(others // self.n_items, minlength=rows)
            same = same + np.where(count == 0, at_the_end, 0)
        unscored = score == 0
        return greater + np.where(unscored, more, 0), equal + np.where(unscored, same, 0)


class ItemToItem(Popularity):
    """Ranks by what followed the last items of the input in training, then by training count.

    score(v | h) = sum over the last five items of h, d = 1 the newest, of
    c(h_d, v) / (d sqrt(n(h_d) n(v))), added up in the order of d. c(a, b) adds 1/(j - i) for each
    pair a at place i, b at place j of a training sequence with 1 <= j - i <= 5, and half of it to
    c(b, a); n is the training count.
    """

    name = "item-to-item"

    def __init__(self, train: Jagged, n_items: int) -> None:
        super().__init__(train, n_items)
        keys, self._pairs = _count_pairs(train, n_items)
        source, self._followers = np.divmod(keys, n_items)
        self._offsets = np.searchsorted(source, np.arange(n_items + 1))

    def _cost(self, inputs: Jagged) -> np.ndarray:
        cost = super()._cost(inputs)
        followers = np.diff(self._offsets)
        for back in range(1, WINDOW + 1):
            row, item = _from_end(inputs, back)
            cost[row] += followers[item]
        return cost

    def _scores(self, inputs: Jagged) -> _Scores:
        newest = [_from_end(inputs, back) for back in range(1, WINDOW + 1)]
        row = np.concatenate([r for r, _ in newest])
        source = np.concatenate([s for _, s in newest])
        back = np.repeat(np.arange(1, WINDOW + 1), [len(r) for r, _ in newest])
        # by row, newest first: the pieces of a row are then runs that a merge sort merges
        order = np.argsort(row, kind="stable")
        row, source, back = row[order], source[order], back[order]

        starts, lengths = self._offsets[source], np.diff(self._offsets)[source]
        piece = np.repeat(np.arange(len(row)), lengths)
        places = np.arange(len(piece)) + (starts - np.cumsum(lengths) + lengths)[piece]
        item = self._followers[places]
        norm = back[piece] * np.sqrt((self.counts[source[piece]] * self.counts[item]).astype(float))
        terms = self._pairs[places] / _UNIT / norm

        keys = row[piece] * self.n_items + item
        order = np.argsort(keys, kind="stable")
        keys, terms = keys[order], terms[order]
        fresh = np.ones(len(keys), dtype=bool)
        fresh[1:] = keys[1:] != keys[:-1]
        # bincount adds in order, newest item first: one defined sum
        values = np.bincount(np.cumsum(fresh) - 1, weights=terms)
        return _Scores(keys[fresh], np.maximum(np.rint(values * 2.0**40), 1).astype(np.int64))


def _count_pairs(train: Jagged, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """c as (a * n_items + b ascending, c(a, b) in units of 1/120)."""
    row = train.row_of_values()
    keys, units = [], []
    for gap in range(1, WINDOW + 1):
        same = row[gap:] == row[:-gap]
        a, b = train.values[:-gap][same], train.values[gap:][same]
        both = np.concatenate((a * n_items + b << 1, (b * n_items + a << 1) | 1))
        pair, times = np.unique(both, return_counts=True)
        keys.append(pair >> 1)
        units.append(times * np.where(pair & 1, _UNIT // 2 // gap, _UNIT // gap))
    key, unit = np.concatenate(keys), np.concatenate(units)
    order = np.argsort(key, kind="stable")
    key, unit = key[order], unit[order]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    return key[starts], np.add.reduceat(unit, starts) if len(key) else unit


def _from_end(inputs: Jagged, back: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, item) of the ``back``-th last item of every row that has one."""
    rows = np.flatnonzero(inputs.lengths() >= back)
    return rows, inputs.values[inputs.offsets[1:][rows] - back]


def _contains(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool, shaped like ``wanted``: which are in ``ascending`` (sorted)?"""
    if not len(ascending):
        return np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return ascending[place] == wanted


def _look_up(scores: _Scores, keys: np.ndarray) -> np.ndarray:
    """The score of each key, 0 where it has none."""
    if not len(scores.keys):
        return np.zeros(len(keys), dtype=np.int64)
    place = np.minimum(np.searchsorted(scores.keys, keys), len(scores.keys) - 1)
    return np.where(scores.keys[place] == keys, scores.values[place], 0)
