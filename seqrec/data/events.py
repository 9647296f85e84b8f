"""From rows of (user, item, time) in file order to the ordered, numbered, filtered log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqrec.errors import UsageError

REPEATS = ("keep", "first", "adjacent")


@dataclass(frozen=True)
class Events:
    """The rows of a source in file order.

    Attributes:
        users, items: String series [N], external ids.
        times: Int64 or Float64 series [N], finite; None where the source has none.
        format: the format that was read.
        place: names row i of the source in a message ("log.csv:17").
        notes: remarks on how the source was understood, one line each.
    """

    users: pl.Series
    items: pl.Series
    times: pl.Series | None
    format: str
    place: Callable[[int], str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Numbered:
    """Events with integer ids, ordered by (user, time, place in the file).

    Attributes:
        users, items: int64 [N], rows of the name lists.
        times: float64 [N] or None.
        user_names, item_names: external ids by first appearance in the file.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_names: list[str]
    item_names: list[str]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, kept: np.ndarray) -> Numbered:
        """The events where ``kept`` (bool [N]) is true; names without an event go."""
        users, user_names = _compact(self.users[kept], self.user_names)
        items, item_names = _compact(self.items[kept], self.item_names)
        times = None if self.times is None else self.times[kept]
        return Numbered(users, items, times, user_names, item_names)


def number(events: Events) -> Numbered:
    """Number users and items by first appearance and order the events.

    Raises:
        UsageError: an id that is empty or holds a blank or a NUL.
    """
    users, user_names = number_names(events.users)
    items, item_names = number_names(events.items)
    _check_ids("user", user_names, users, events.place)
    _check_ids("item", item_names, items, events.place)
    order = _order(users, events.times)
    times = None if events.times is None else events.times.to_numpy().astype(np.float64)[order]
    return Numbered(users[order], items[order], times, user_names, item_names)


def number_names(names: pl.Series) -> tuple[np.ndarray, list[str]]:
    """Numbers by first appearance, int64 [N], and the different names in that order."""
    frame = names.rename("name").to_frame().with_row_index("place")
    first = frame.select(pl.col("place").first().over("name"))["place"].to_numpy()
    is_first = first == np.arange(len(first))
    numbers = np.cumsum(is_first) - 1
    return numbers[first], frame["name"].filter(pl.Series(is_first)).to_list()


def drop_repeats(log: Numbered, repeats: str) -> Numbered:
    """Drop a user's later events with an item (``first``), or all but the first of equal events in
    a row (``adjacent``)."""
    if repeats == "keep" or not len(log):
        return log
    kept = np.ones(len(log), dtype=bool)
    if repeats == "adjacent":
        same_user = log.users[1:] == log.users[:-1]
        kept[1:] = ~(same_user & (log.items[1:] == log.items[:-1]))
    else:
        pair = log.users * len(log.item_names) + log.items
        by_pair = np.argsort(pair, kind="stable")
        kept[by_pair[1:]] = pair[by_pair[1:]] != pair[by_pair[:-1]]
    return log if kept.all() else log.take(kept)


def core(log: Numbered, min_user: int, min_item: int, repeats: str) -> Numbered:
    """Drop users and items with too few events until none is left to drop.

    Dropping an item can bring two equal events together, so ``repeats`` is applied in the same
    turn: what comes out fulfils all three.
    """
    while True:
        before = len(log)
        log = drop_repeats(log, repeats)
        users = np.bincount(log.users, minlength=len(log.user_names))
        items = np.bincount(log.items, minlength=len(log.item_names))
        kept = (users >= min_user)[log.users] & (items >= min_item)[log.items]
        if not kept.all():
            log = log.take(kept)
        if len(log) == before:
            return log


def tied_share(log: Numbered) -> float | None:
    """Share of the events that share user and time with another one; None without times."""
    if log.times is None:
        return None
    if not len(log):
        return 0.0
    tie = (log.users[1:] == log.users[:-1]) & (log.times[1:] == log.times[:-1])
    tied = np.zeros(len(log), dtype=bool)
    tied[1:] |= tie
    tied[:-1] |= tie
    return float(tied.mean())


def _order(users: np.ndarray, times: pl.Series | None) -> np.ndarray:
    """The stable order by (user, time); the time is compared as read, integers exactly."""
    if times is None:
        order = np.arange(len(users))
        if (users[1:] >= users[:-1]).all():
            return order
    else:
        order = np.argsort(times.to_numpy(), kind="stable")
    # user and rank in one number: a plain sort of these is far faster than a stable argsort
    key = (users[order].astype(np.uint64) << np.uint64(32)) | np.arange(len(users), dtype=np.uint64)
    key.sort()
    return order[(key & np.uint64(0xFFFFFFFF)).astype(np.int64)]


def _compact(numbers: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Renumber without gaps, in the old order."""
    used = np.zeros(len(names), dtype=bool)
    used[numbers] = True
    if used.all():
        return numbers, names
    new = np.cumsum(used) - 1
    return new[numbers], [names[i] for i in np.flatnonzero(used)]


def _check_ids(
    kind: str, names: list[str], numbers: np.ndarray, place: Callable[[int], str]
) -> None:
    text = pl.Series(names, dtype=pl.String)
    bad = (text.str.contains(r"[ \t\n\x0b\x0c\r\x00]") | (text == "")).arg_true()
    if not len(bad):
        return
    name = names[bad[0]]
    where = place(int(np.argmax(numbers == bad[0])))
    if not name:
        raise UsageError(f"an empty {kind} id", where, "every row needs a user and an item")
    raise UsageError(
        f"the {kind} id {name!r} holds a blank", where, "ids are runs of characters without blanks"
    )
