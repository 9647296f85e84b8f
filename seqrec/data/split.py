"""What the weights may see, what chooses among them, and what judges them.

A split turns an ordered log into training sequences and two lists of targets. Adding one is a
function ``(log, seed, roles) -> Split`` and an entry in ``SPLITS``.

Leave-one-out looks into the future: what the weights learn from one user may have happened after
the event that is to be predicted for another (Ji et al., "A Critical Study on Data Leakage in
Recommender System Offline Evaluation", TOIS 2023). ``global-time`` does not, and ``by-user`` asks
about users that the weights have never seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from seqrec.data.philox import random_order
from seqrec.data.roles import read_roles
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
        train: the sequences that weights may see, one row a user of the log; rows may be empty.
        valid: targets that choose the epoch.
        test: targets that are looked at once.
        n_items: size of the catalogue, held-out items included.
        users_not_evaluated: users of the log without a test target.
        remark: why those have none, and what else is worth knowing of the cut.
        drawn: what of a protocol the name does not say: the seed the users were dealt by, or the
            sha256 of the file that gave their roles. Runs that differ here share no table.
    """

    name: str
    train: Jagged
    valid: Targets
    test: Targets
    n_items: int
    users_not_evaluated: int
    remark: str = ""
    drawn: dict[str, int | str] = field(default_factory=dict)


def split_log(
    log: InteractionLog, name: str = "leave-one-out", seed: int = 0, roles: str = ""
) -> Split:
    """Cut ``log`` by the split called ``name``.

    Args:
        log: in its users' order of time.
        name: a key of ``SPLITS``.
        seed: of ``by-user``.
        roles: of ``by-user``, a file that says who trains, validates and tests; nothing is drawn
            then.

    Raises:
        UsageError: no split of that name, fewer than 2 users that can be evaluated, or no times
            where the split needs them.
    """
    if name not in SPLITS:
        known = ", ".join(SPLITS)
        raise UsageError(f"unknown split {name!r}", "data.split", f"the splits are: {known}")
    return SPLITS[name](log, seed, roles)


def leave_one_out(log: InteractionLog, seed: int = 0, roles: str = "") -> Split:
    """Last event = test, the one before = validation, the rest = training.

    A user with fewer than 3 events would have nothing left to train on or to predict from: the
    whole sequence trains and the user is not evaluated.
    """
    lengths = np.diff(log.offsets)
    evaluated = np.flatnonzero(lengths >= 3)
    _enough(log, len(evaluated), "leave-one-out needs users with 3 events or more")
    starts, ends = log.offsets[:-1], log.offsets[1:]
    first, last = starts[evaluated], ends[evaluated] - 1
    items = log.item_rows
    train_ends = ends - np.where(lengths >= 3, 2, 0)
    return Split(
        name="leave-one-out",
        train=_pieces(items, starts, train_ends),
        valid=Targets(evaluated, _pieces(items, first, last - 1), items[last - 1]),
        test=Targets(evaluated, _pieces(items, first, last), items[last]),
        n_items=log.n_items,
        users_not_evaluated=log.n_users - len(evaluated),
        remark=_joined(
            _few(log.n_users - len(evaluated)), _looks_ahead(log, starts, train_ends, last)
        ),
    )


def by_user(log: InteractionLog, seed: int = 0, roles: str = "") -> Split:
    """70 % of the users train whole, 20 % are for validation and 10 % for the test.

    A user held out has one target, the last event, and everything before it as input: nothing of
    theirs trains. The users are dealt by Philox(seed, user), or as `roles` says; those with fewer
    than 3 events train in any case.
    """
    few = np.flatnonzero(np.diff(log.offsets) < 3)
    if roles:
        given = read_roles(roles, log)
        valid, test = (np.setdiff1d(given.users(role), few) for role in ("valid", "test"))
        drawn: dict[str, int | str] = {"roles_sha256": given.sha256}
    else:
        dealt = np.setdiff1d(np.arange(log.n_users), few)
        order = dealt[random_order(seed, dealt)]
        cuts = [len(dealt) * 7 // 10, len(dealt) * 7 // 10 + len(dealt) * 2 // 10]
        _, valid, test = (np.sort(part) for part in np.split(order, cuts))
        drawn = {"split_seed": seed}
    _enough(
        log,
        min(len(valid), len(test)),
        "give 2 users with 3 events or more the role `valid` and 2 `test`"
        if roles
        else "by-user tests on 10 % of the users with 3 events or more",
        where=roles,
    )
    trains = np.ones(log.n_users, dtype=bool)
    trains[valid] = trains[test] = False
    starts, ends = log.offsets[:-1], log.offsets[1:]
    return Split(
        name="by-user",
        train=_pieces(log.item_rows, starts, np.where(trains, ends, starts)),
        valid=_before(log, valid, ends[valid] - 1),
        test=_before(log, test, ends[test] - 1),
        n_items=log.n_items,
        users_not_evaluated=log.n_users - len(test),
        remark=_joined(f"{int(trains.sum()):,} train, {len(valid):,} validate", _few(len(few))),
        drawn=drawn,
    )


def global_time(log: InteractionLog, seed: int = 0, roles: str = "") -> Split:
    """The future is held out: one moment, the same for all users, parts training from test.

    T_test is the 0.9 quantile of all times and T_valid the 0.9 quantile of the times before it.
    The weights see the events before T_valid. A user's validation target is the last event in
    [T_valid, T_test), the test target the last from T_test on, each where the user has an earlier
    event at all; the input is everything before the target.
    """
    if log.times is None:
        raise UsageError(
            "data.split = global-time needs the events' times, and the log has none",
            log.file,
            "use a log with a time column, or data.split = leave-one-out",
        )
    times = log.times
    t_test = np.quantile(times, 0.9)
    earlier = times[times < t_test]
    t_valid = np.quantile(earlier, 0.9) if len(earlier) else t_test
    # a user's events stand in order of time, so each of the three parts is one piece of them
    train_ends = _places_before(log, t_valid)
    valid_ends = _places_before(log, t_test)
    starts, ends = log.offsets[:-1], log.offsets[1:]
    valid = np.flatnonzero((valid_ends > train_ends) & (valid_ends - starts >= 2))
    test = np.flatnonzero((ends > valid_ends) & (ends - starts >= 2))
    _enough(
        log,
        min(len(valid), len(test)),
        "global-time needs users with an event in the last tenth of the log and one before it",
    )
    return Split(
        name="global-time",
        train=_pieces(log.item_rows, starts, train_ends),
        valid=_before(log, valid, valid_ends[valid] - 1),
        test=_before(log, test, ends[test] - 1),
        n_items=log.n_items,
        users_not_evaluated=log.n_users - len(test),
        remark=f"{len(valid):,} validate; weights see events before {t_valid:.10g}, "
        f"test targets are from {t_test:.10g} on",
    )


def _before(log: InteractionLog, users: np.ndarray, places: np.ndarray) -> Targets:
    """The events at `places` as targets of `users`, with all that came before as inputs."""
    inputs = _pieces(log.item_rows, log.offsets[:-1][users], places)
    return Targets(users, inputs, log.item_rows[places])


def _places_before(log: InteractionLog, moment: float) -> np.ndarray:
    """Where in the log each user's events from `moment` on begin, int64 [U]."""
    assert log.times is not None
    counted = np.zeros(log.n_interactions + 1, dtype=np.int64)
    np.cumsum(log.times < moment, out=counted[1:])
    return log.offsets[:-1] + np.diff(counted[log.offsets])


def _enough(log: InteractionLog, count: int, needs: str, where: str = "") -> None:
    if count < 2:
        raise UsageError(
            f"{count} of {log.n_users} users can be evaluated, at least 2 are needed",
            where or log.file,
            needs,
        )


def _few(count: int) -> str:
    return f"{count:,} with fewer than 3 events only train" if count else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _looks_ahead(
    log: InteractionLog, starts: np.ndarray, train_ends: np.ndarray, targets: np.ndarray
) -> str:
    """How many test targets are older than the newest event that trains, where times tell."""
    if log.times is None:
        return ""
    trained = train_ends > starts
    # a user's own training events are never newer than the user's target
    share = float((log.times[targets] < log.times[train_ends[trained] - 1].max()).mean())
    if share == 0:
        return ""
    return (
        f"the weights see events newer than the test target of {share:.1%} of the users "
        "(data.split = global-time holds out the future instead)"
    )


def _pieces(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Jagged:
    """values[start:end] for every pair, as rows."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    return Jagged(offsets, values[places])


# Name -> what cuts. The order is the order in which error messages list them.
SPLITS: dict[str, Callable[[InteractionLog, int, str], Split]] = {
    "leave-one-out": leave_one_out,
    "by-user": by_user,
    "global-time": global_time,
}
