"""Which training row is the second view of a row: one with the same target and another input.

Rows are prefixes, cut to their last `max_length` items.  Two rules:

* `LastDiffering`: of the rows with the same target the last one, in row order, whose input differs.
  The published code of ICSRec and FENRec draws at random by its text; what it returns is this.
* `RandomDiffering`: one of them, drawn uniformly for every row and epoch.

A row that no other differs from is its own view; its two encodings then differ by dropout only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from seqrec.data.philox import STREAM_POSITIVES, words
from seqrec.data.store import SequenceStore, to_device
from seqrec_kernels import philox

# rows int64 [B] and an epoch int64, 0-d, on one device -> int64 [B] there
FixedPositives = Callable[[Tensor, Tensor], Tensor]


class Positives(Protocol):
    """A rule, ready to be asked."""

    def of(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The positive row of each of `rows`: int64 [B] -> int64 [B], on the host."""

    def fixed(self, device: torch.device) -> FixedPositives:
        """The same of rows and an epoch on `device`."""


class LastDiffering:
    """The published rule, the same in every epoch.

    Args:
        targets: int64 [M], the item each row predicts.
        inputs: int64 [M], equal where two rows' inputs are.
    """

    def __init__(self, targets: np.ndarray, inputs: np.ndarray) -> None:
        rows = np.arange(len(targets))
        _, group = np.unique(targets, return_inverse=True)
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(group.max(initial=-1) + 1))
        last = np.maximum.reduceat(order, starts)[group] if len(rows) else rows
        differs = inputs[last] != inputs
        # rows with the last one's input take the last that differs from it, where there is one
        candidate = np.where(differs, rows, -1)[order]
        other = np.maximum.reduceat(candidate, starts)[group] if len(rows) else rows
        self._positive = np.where(differs, last, np.where(other >= 0, other, rows))

    def of(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return self._positive[rows]

    def fixed(self, device: torch.device) -> FixedPositives:
        positive = to_device(self._positive, device)
        return lambda rows, epoch: positive[rows]


class RandomDiffering:
    """A uniform draw, without rejection: the rows of a target are sorted by input, so those that do
    not count stand together and are stepped over.

    Args:
        targets, inputs: as for `LastDiffering`.
        seed: of the run; a draw is a function of (seed, row, epoch).
    """

    def __init__(self, targets: np.ndarray, inputs: np.ndarray, seed: int) -> None:
        self.seed = seed
        self._order = np.lexsort((inputs, targets))
        self._begin, self._size = _runs(targets[self._order], self._order)
        kinds = targets * (int(inputs.max(initial=0)) + 1) + inputs
        self._same_begin, self._same_size = _runs(kinds[self._order], self._order)

    def of(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        others = self._size[rows] - self._same_size[rows]
        drawn = (words(self.seed, STREAM_POSITIVES, rows, epoch)[0] * others) >> 32
        place = self._begin[rows] + drawn
        place += np.where(place >= self._same_begin[rows], self._same_size[rows], 0)
        found = self._order[np.minimum(place, len(self._order) - 1)]
        return np.where(others > 0, found, rows)

    def fixed(self, device: torch.device) -> FixedPositives:
        runs = self._begin, self._size, self._same_begin, self._same_size
        known = to_device(np.stack(runs), device)
        order = to_device(self._order, device)

        def of(rows: Tensor, epoch: Tensor) -> Tensor:
            begin, size, same_begin, same_size = known[:, rows]
            others = size - same_size
            drawn = philox.words(self.seed, STREAM_POSITIVES, rows, epoch)[0]
            place = begin + ((drawn * others) >> 32)
            place = place + torch.where(place >= same_begin, same_size, 0)
            return torch.where(others > 0, order[place.clamp(max=len(order) - 1)], rows)

        return of


def _runs(sorted_keys: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row (row order): where the run of its key begins among the sorted, and its length."""
    first = np.ones(len(sorted_keys), dtype=bool)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    run = np.cumsum(first) - 1
    begins = np.flatnonzero(first)
    sizes = np.diff(np.append(begins, len(sorted_keys)))
    begin, size = np.empty_like(order), np.empty_like(order)
    begin[order], size[order] = begins[run], sizes[run]
    return begin, size


def same_target_rows(store: SequenceStore, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and inputs of all prefixes, as the rules take them."""
    values = store.values.cpu().numpy()
    sequences, lengths = store.prefix_index()
    ends = store.offsets[sequences] + lengths
    kept = np.minimum(lengths, max_length)
    return values[ends], window_kinds(values, ends - kept, kept)


def window_kinds(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A number for every window values[start:start + length], equal exactly where windows are.

    By doubling: blocks of 1, 2, 4, ... values are numbered at every place from the numbers of their
    halves, and a window is known by its length and the two longest blocks that cover it.  That is a
    sort of all places for every power of two up to the longest window, and no hash.

    Args:
        values: int64 [N], not negative.
        starts, lengths: int64 [M]; windows of at least one value, inside the array.
    """
    n = len(values)
    left, right = np.empty_like(starts), np.empty_like(starts)
    block, number = 1, np.unique(values, return_inverse=True)[1]
    longest = int(lengths.max(initial=0))
    while block <= longest:
        here = (lengths >= block) & (lengths < 2 * block)
        left[here] = number[starts[here]]
        right[here] = number[starts[here] + lengths[here] - block]
        # blocks that reach past the end are numbered too, wrongly; no window holds them
        second = number[np.minimum(np.arange(n) + block, n - 1)]
        block *= 2
        if block <= longest:
            number = np.unique(number * n + second, return_inverse=True)[1]
    return np.unique((lengths * n + left) * n + right, return_inverse=True)[1]
