"""The interaction log: what every source is read into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrec.data import events as ev
from seqrec.data.sources import read_events
from seqrec.errors import UsageError


@dataclass(frozen=True)
class InteractionLog:
    """Users, items and every user's events, oldest first.

    Attributes:
        users, items: external ids by first appearance in the file. Item row v of every table is
            ``items[v]``; there is no padding row.
        offsets: int64 [U + 1]; the events of user u are item_rows[offsets[u]:offsets[u + 1]], and
            every user has at least one.
        item_rows: int64 [N].
        times: float64 [N], or None where the source has none.
        file: what the user named.
        format: lines, pairs, inter, csv, parquet, frame, dict or synthetic.
        sha256: of the file's bytes; of the specification of a synthetic log, of the content of a
            frame or a dict. Filters play no part.
        tied_share: share of the events that share user and time with another one.
        notes: one-line remarks on what was decided while reading.
    """

    users: list[str]
    items: list[str]
    offsets: np.ndarray
    item_rows: np.ndarray
    times: np.ndarray | None
    file: str
    format: str
    sha256: str
    tied_share: float | None
    notes: tuple[str, ...] = ()

    @property
    def n_users(self) -> int:
        return len(self.users)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def n_interactions(self) -> int:
        return len(self.item_rows)


def read_log(
    source: Any,
    *,
    format: str | None = None,
    min_user: int = 0,
    min_item: int = 0,
    repeats: str = "keep",
) -> InteractionLog:
    """Read an interaction log.

    Args:
        source: a path; ``"synthetic[:users=..,items=..,groups=..,seed=..]"``; a polars or pandas
            frame with columns user, item and perhaps time; or ``{user: [item, ...]}``.
        format: lines, pairs, inter, csv or parquet; None or "auto" looks at the file.
        min_user, min_item: drop users and items with fewer events, again and again until none is
            left to drop; 0 and 1 drop nothing.
        repeats: "keep"; "first": a user keeps the first event with each item; "adjacent": of equal
            events in a row the first stays.

    Raises:
        UsageError: a source that cannot be read or understood, with file and line.
    """
    _check_filters(min_user, min_item, repeats)
    if isinstance(source, str) and source.split(":", 1)[0] == "synthetic":
        from seqrec.data.synthetic import read_synthetic

        if format not in (None, "auto") or max(min_user, min_item) > 1 or repeats != "keep":
            raise UsageError(
                "a synthetic log is used whole",
                source,
                "leave data.format, .min_* and .repeats out",
            )
        return read_synthetic(source)
    raw, events, file = read_events(source, format)
    whole = ev.number(events)
    log = ev.core(whole, min_user, min_item, repeats)
    if not len(log):
        raise UsageError(
            "no event is left", file, f"lower data.min_user={min_user} or data.min_item={min_item}"
        )
    counts = np.bincount(log.users, minlength=len(log.user_names))
    return InteractionLog(
        users=log.user_names,
        items=log.item_names,
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item_rows=log.items,
        times=log.times,
        file=file,
        format=events.format,
        sha256=_content_hash(whole) if raw is None else hashlib.sha256(raw).hexdigest(),
        tied_share=ev.tied_share(log),
        notes=events.notes + _dropped(whole, log, min_user, min_item, repeats),
    )


def _check_filters(min_user: int, min_item: int, repeats: str) -> None:
    for name, value in (("data.min_user", min_user), ("data.min_item", min_item)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{value!r} is no count", name, "give a whole number, 0 or more")
    if repeats not in ev.REPEATS:
        raise UsageError(
            f"unknown value {repeats!r}", "data.repeats", f"choose {', '.join(ev.REPEATS)}"
        )


def _dropped(
    whole: ev.Numbered, log: ev.Numbered, min_user: int, min_item: int, repeats: str
) -> tuple[str, ...]:
    if min_user < 2 and min_item < 2 and repeats == "keep":
        return ()
    return (
        f"dropped by min_user={min_user}, min_item={min_item}, repeats={repeats}: "
        f"{len(whole.user_names) - len(log.user_names):,} users, "
        f"{len(whole.item_names) - len(log.item_names):,} items, "
        f"{len(whole) - len(log):,} interactions",
    )


def _content_hash(log: ev.Numbered) -> str:
    """sha256 of what a source without bytes holds: ids, order and times."""
    digest = hashlib.sha256()
    for names in (log.user_names, log.item_names):
        digest.update("\n".join([str(len(names)), *names, ""]).encode())
    for numbers in (log.users, log.items):
        digest.update(numbers.astype("<i8").tobytes())
    if log.times is not None:
        digest.update(log.times.astype("<f8").tobytes())
    return digest.hexdigest()
