"""What the weights may see, what chooses among them, and what judges them.

A split turns an ordered log into training sequences and two lists of targets. Adding one is a
function ``log -> Split`` and an entry in ``SPLITS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqrec.errors import UsageError

if TYPE_CHECKING:
    from seqrec.data.log import InteractionLog


@dataclass(frozen=True)
class Jagged:
    """Rows of different length, one after the other: row b is values[offsets[b]:offsets[b + 1]].

    Attributes:
        offsets: int64 [B + 1], from 0, never falling.
        values: int64 [N].
    """

    offsets: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Length of every row, int64 [B]."""
        return np.diff(self.offsets)

    def row(self, b: int) -> np.ndarray:
        """The values of row ``b``, a view."""
        return self.values[self.offsets[b] : self.offsets[b + 1]]

    def row_of_values(self) -> np.ndarray:
        """The row every value stands in, int64 [N]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths())

    def take(self, rows: np.ndarray) -> Jagged:
        """The rows of these numbers (int64 [b], may repeat), in their order."""
        return _pieces(self.values, self.offsets[:-1][rows], self.offsets[1:][rows])

    @classmethod
    def from_lists(cls, rows: list[list[int]]) -> Jagged:
        """From Python lists, for small things and tests."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.array([value for row in rows for value in row], dtype=np.int64)
        return cls(offsets, values)


@dataclass(frozen=True)
class Targets:
    """One thing to predict a user, and everything that came before it.

    Attributes:
        users: int64 [B], user rows of the log.
        inputs: B rows, all events before the target, oldest first, never cut.
        items: int64 [B], the item row to predict.
    """

    users: np.ndarray
    inputs: Jagged
    items: np.ndarray


@dataclass(frozen=True)
class Split:
    """A log cut for training and judging.

    Attributes:
        name: what the user calls it.
        train: the sequences that weights may see; under leave-one-out one row a user of the log.
        valid: targets that choose the epoch.
        test: targets that are looked at once.
        n_items: size of the catalogue, held-out items included.
        users_not_evaluated: users of the log without a test target.
    """

    name: str
    train: Jagged
    valid: Targets
    test: Targets
    n_items: int
    users_not_evaluated: int


def split_log(log: InteractionLog, name: str = "leave-one-out") -> Split:
    """Cut ``log`` by the split called ``name``.

    Raises:
        UsageError: no split of that name, or fewer than 2 users that can be evaluated.
    """
    if name not in SPLITS:
        known = ", ".join(SPLITS)
        raise UsageError(f"unknown split {name!r}", "data.split", f"the splits are: {known}")
    return SPLITS[name](log)


def leave_one_out(log: InteractionLog) -> Split:
    """Last event = test, the one before = validation, the rest = training.

    A user with fewer than 3 events would have nothing left to train on or to predict from: the
    whole sequence trains and the user is not evaluated.
    """
    lengths = np.diff(log.offsets)
    evaluated = np.flatnonzero(lengths >= 3)
    if len(evaluated) < 2:
        raise UsageError(
            f"{len(evaluated)} of {log.n_users} users can be evaluated, at least 2 are needed",
            log.file,
            "leave-one-out needs users with 3 events or more",
        )
    starts, ends = log.offsets[:-1], log.offsets[1:]
    first, last = starts[evaluated], ends[evaluated] - 1
    items = log.item_rows
    return Split(
        name="leave-one-out",
        train=_pieces(items, starts, ends - np.where(lengths >= 3, 2, 0)),
        valid=Targets(evaluated, _pieces(items, first, last - 1), items[last - 1]),
        test=Targets(evaluated, _pieces(items, first, last), items[last]),
        n_items=log.n_items,
        users_not_evaluated=log.n_users - len(evaluated),
    )


def _pieces(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Jagged:
    """values[start:end] for every pair, as rows."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    return Jagged(offsets, values[places])


# Name -> what cuts. The order is the order in which error messages list them.
SPLITS: dict[str, Callable[[InteractionLog], Split]] = {"leave-one-out": leave_one_out}
