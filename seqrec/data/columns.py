"""Named columns: which is which, and what has to be in them.

``user`` or ``user_id`` and ``item`` or ``item_id`` are ids; ``time`` or ``timestamp`` orders a
user's events; ``rating`` must hold numbers and is not used. Case does not matter, RecBole's
``:type`` endings are dropped, other columns are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import polars as pl

from seqrec.data.events import Events
from seqrec.data.text import BLANKS
from seqrec.errors import UsageError

ROLES = {
    "user": "user",
    "user_id": "user",
    "item": "item",
    "item_id": "item",
    "time": "time",
    "timestamp": "time",
    "rating": "rating",
}


def plain_name(name: str) -> str:
    """``"User_ID:token"`` -> user_id."""
    return re.sub(r":\w*$", "", name.strip(BLANKS).strip('"').lower()).strip(BLANKS)


def find_roles(names: Sequence[str], where: str) -> dict[str, int]:
    """The place of the user, item, time and rating columns among ``names``.

    Raises:
        UsageError: two columns for one role, or no user or item column.
    """
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        role = ROLES.get(plain_name(name))
        if role in found:
            both = f"{names[found[role]].strip()!r} and {name.strip()!r}"
            raise UsageError(f"two {role} columns: {both}", where, "rename one of them")
        if role:
            found[role] = i
    for role in ("user", "item"):
        if role not in found:
            columns = ", ".join(name.strip() for name in names)
            raise UsageError(
                f"no {role} column among: {columns}", where, f"name it {role} or {role}_id"
            )
    return found


def to_events(
    columns: dict[str, pl.Series],
    kind: str,
    name_row: Callable[[int], str],
    notes: tuple[str, ...] = (),
) -> Events:
    """Events from a user and an item column of text, and perhaps time and rating.

    Args:
        columns: series by role.
        kind: the format that was read.
        name_row: names a row in messages.
        notes: remarks on how the source was read.
    """
    if "rating" in columns:
        to_numbers(columns["rating"], "rating", name_row)
    times = to_numbers(columns["time"], "time", name_row) if "time" in columns else None
    return Events(
        users=columns["user"].str.strip_chars(BLANKS),
        items=columns["item"].str.strip_chars(BLANKS),
        times=times,
        format=kind,
        place=name_row,
        notes=notes,
    )


def to_numbers(column: pl.Series, role: str, name_row: Callable[[int], str]) -> pl.Series:
    """The column as Int64 where all of it is integer, else as Float64; every value finite."""
    if column.dtype.is_temporal():
        column = column.to_physical()
    if column.dtype == pl.String:
        column = column.str.strip_chars(BLANKS)
    whole = column.cast(pl.Int64, strict=False)
    if not column.dtype.is_float() and not whole.null_count():
        return whole
    numbers = column.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() | ~numbers.is_finite()).fill_null(True).arg_true()
    if len(bad):
        value = column[int(bad[0])]
        what = f"no {role}" if value is None or value == "" else f"{value!r} is no {role}"
        raise UsageError(what, name_row(bad[0]), f"the column {role} must hold finite numbers")
    return numbers
