"""Independent draws from a distribution over the catalogue without what a user has met.

No draw is thrown away, and nothing depends on the data but values.  Item v has an integer width
w(v) (1 for all: the uniform distribution), and the items lie on a line, one beside the other by id;
W is the width of all.  A user's line is the same with the items of the user's sequence taken out
and laid behind the others, the last met first.  A target inside the sequence has met the first so
many of them, and those lie at the very end: so a number below W less their width, drawn uniformly,
falls on every other item by its width, and on none of them.

A user's line is a few pieces of the catalogue's, moved.  One table holds the pieces of all users,
by (user, where the piece begins), and how far each has been moved; a draw is one binary search.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqrec.data.store import to_device
from seqrec.negatives.histories import Histories, Rows
from seqrec_kernels import philox

_TURN = 1 << 17  # numbers; what fits the cache is drawn faster


class Unseen:
    """The distribution, for every target of some histories.

    Args:
        histories: who has met what.
        widths: int64 [R] on the host, not negative, at most 2^30 in all; None: 1 each.
    """

    def __init__(self, histories: Histories, widths: np.ndarray | None = None) -> None:
        device = histories.device
        width = np.ones(histories.n_items, dtype=np.int64) if widths is None else widths
        self._total = total = int(width.sum())
        if total > 1 << 30:
            raise ValueError(f"widths add up to {total}; they may to at most {1 << 30}")
        items, starts = histories.novel.cpu().numpy(), histories.starts
        met = _before(width[items])  # in the order of meeting
        users, begins, moved = _pieces(items, starts, met, _before(width), width)
        self._keys = to_device(users * (total + 1) + begins, device)
        self._moved = to_device(moved, device)
        self._starts, self._met = to_device(starts, device), to_device(met, device)
        self._ends = None if widths is None else to_device(np.cumsum(width), device)

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
        start = self._starts[sequences]
        room = (self._total - (self._met[start + met] - self._met[start]))[:, None]
        row = torch.arange(top, top + len(met), device=met.device)[:, None]
        fours = torch.arange(-(-count // 4), device=met.device)
        words = torch.stack(philox.words(seed, stream, row, fours), 2).flatten(1)[:, :count]
        x = (words * room) >> 32
        piece = torch.searchsorted(
            self._keys, x + (sequences * (self._total + 1))[:, None], right=True
        )
        x += self._moved[piece - 1]
        found = x if self._ends is None else torch.searchsorted(self._ends, x, right=True)
        return found.masked_fill_(room == 0, -1)


def _pieces(
    items: np.ndarray, starts: np.ndarray, met: np.ndarray, place: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of all users' lines, in order: user, where it begins, and how far it was moved.

    Args:
        items: the users' items, in the order of meeting.
        starts: where each user's begin.
        met: widths of the items before each of them.
        place: where an item begins on the catalogue's line.
        width: of an item.
    """
    users = np.arange(len(starts) - 1)
    user = np.repeat(users, np.diff(starts))
    # what is left behind the j-th item by id closes up by the widths of the items up to it
    ids = items[np.lexsort((items, user))]
    closed = _before(width[ids])
    gap = closed[1:] - closed[starts[:-1]][user]
    # the items themselves lie behind all that is left, from the last met to the first
    left = place[-1] - np.diff(met[starts])
    last = left[user] + met[starts[1:]][user] - met[1:]
    latest = slice(None, None, -1)
    pieces = (
        np.concatenate((users, user, user[latest])),
        np.concatenate((np.zeros_like(users), place[ids] + width[ids] - gap, last[latest])),
        np.concatenate((np.zeros_like(users), gap, (place[items] - last)[latest])),
    )
    # stable: of pieces that begin at one place all but the last are empty
    order = np.lexsort((pieces[1], pieces[0]))
    return pieces[0][order], pieces[1][order], pieces[2][order]


def _before(widths: np.ndarray) -> np.ndarray:
    """Sums of what stands before each place, and of all: int64 [N + 1]."""
    sums = np.zeros(len(widths) + 1, dtype=np.int64)
    np.cumsum(widths, out=sums[1:])
    return sums
