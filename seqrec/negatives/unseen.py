"""Independent draws from a distribution over the catalogue without what a user has met.

No draw is thrown away, and nothing depends on the data but values.  Item v has an integer width
w(v) (1 for all: the uniform distribution), C(v) is the width of all items below v, and W that of
all.  Lay the catalogue on a line, and take out the items s_0 < s_1 < ... of a user's sequence: what
is left before s_j measures

    G_j = C(s_j) - sum over i < j of w(s_i),

which does not fall with j.  So a number x below W - w(S), S the items of the sequence, falls on the
item at x + sum over i < n of w(s_i) of the whole line, n = the number of j with G_j <= x: one
binary search in a table of all sequences, whose keys are (sequence, G_j).

A target inside the sequence has met only the first d of S (in the order of `Histories.novel`); its
numbers reach up to W - w(first d), and those from W - w(S) on fall on the rest of S in that order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqrec.data.store import to_device
from seqrec.negatives.histories import Histories, Rows
from seqrec_kernels import philox

_TURN = 1 << 15  # numbers; what fits the cache is drawn several times faster


class Unseen:
    """The distribution, for every target of some histories.

    Args:
        histories: who has met what.
        widths: int64 [R] on the host, not negative, at most 2^30 in all; None: 1 each.
    """

    def __init__(self, histories: Histories, widths: np.ndarray | None = None) -> None:
        device = histories.device
        items, starts = histories.novel.cpu().numpy(), histories.starts
        sequences = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        width = np.ones(histories.n_items, dtype=np.int64) if widths is None else widths
        total = int(width.sum())
        if total > 1 << 30:
            raise ValueError(f"widths add up to {total}; they may to at most {1 << 30}")
        ids = items[np.lexsort((items, sequences))]
        before = _before(width[ids])
        gaps = _before(width)[ids] - (before[:-1] - before[starts[:-1]][sequences])

        def put(array: np.ndarray) -> Tensor:
            return to_device(np.ascontiguousarray(array), device)

        self._total = total
        self._starts = put(starts)
        self._keys = put(sequences * (total + 1) + gaps)
        self._novel = histories.novel
        # widths of the items before each, by id within a sequence and in the order of meeting
        self._by_id, self._by_order = put(before), put(_before(width[items]))
        self._left = put(total - np.diff(before[starts]))  # outside the sequence, [U]
        self._ends = None if widths is None else put(np.cumsum(width))

    def draw(self, rows: Rows, count: int, seed: int | Tensor, stream: int) -> Tensor:
        """int64 [M, count]; -1 where a user has met all there is.

        Args:
            rows: M targets.
            count: draws of each, independent.
            seed: of the step.
            stream: of Philox; numbers are counted by (row, draw).
        """
        drawn = torch.empty(len(rows.met), count, dtype=torch.int64, device=rows.met.device)
        turn = max(1, _TURN // max(count, 1)) if drawn.device.type == "cpu" else len(drawn)
        for top in range(0, len(drawn), max(turn, 1)):
            part = slice(top, top + turn)
            drawn[part] = self._part(rows.sequences[part], rows.met[part], top, count, seed, stream)
        return drawn

    def _part(
        self,
        sequences: Tensor,
        met: Tensor,
        top: int,
        count: int,
        seed: int | Tensor,
        stream: int,
    ) -> Tensor:
        start = self._starts[sequences][:, None]
        left = self._left[sequences][:, None]
        behind = self._by_order[start + met[:, None]]
        room = self._total - (behind - self._by_order[start])

        row = torch.arange(top, top + len(met), device=met.device)[:, None]
        fours = torch.arange(-(-count // 4), device=met.device)
        words = torch.stack(philox.words(seed, stream, row, fours), 2).flatten(1)[:, :count]
        x = (words * room) >> 32

        passed = torch.searchsorted(
            self._keys, sequences[:, None] * (self._total + 1) + x, right=True
        )
        x_whole = x + self._by_id[passed] - self._by_id[start]
        rest = behind + x - left
        if self._ends is None:
            found, late = x_whole, rest
        else:
            found = torch.searchsorted(self._ends, x_whole, right=True)
            late = torch.searchsorted(self._by_order, rest, right=True) - 1
        # numbers below `left` have no place in the rest, nor those above on the line
        late = self._novel[late.clamp(0, len(self._novel) - 1)]
        found = torch.where(x < left, found, late)
        return torch.where(room > 0, found, -1)


def _before(widths: np.ndarray) -> np.ndarray:
    """Sums of what stands before each place, and of all: int64 [N + 1]."""
    sums = np.zeros(len(widths) + 1, dtype=np.int64)
    np.cumsum(widths, out=sums[1:])
    return sums
