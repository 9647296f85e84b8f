"""Sources that know their types: Parquet, data frames, dicts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.columns import find_roles, to_events
from seqrec.data.events import Events
from seqrec.errors import UsageError


def from_parquet(raw: bytes, file: str) -> Events:
    """The rows of a Parquet file; integer ids become text, dates become numbers."""
    try:
        names = list(pl.read_parquet_schema(io.BytesIO(raw)))
        found = find_roles(names, file)
        frame = pl.read_parquet(io.BytesIO(raw), columns=[names[i] for i in found.values()])
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"this is no Parquet file: {reason}", file, "check data.format") from None
    columns = {role: frame[names[i]] for role, i in found.items()}
    if not frame.height:
        raise UsageError("no user with an item", file, "the table has no rows")
    return _typed_events(columns, "parquet", lambda row: f"{file}, row {row + 1}")


def from_frame(frame: Any) -> Events:
    """The rows of a polars or pandas data frame (anything with columns and ``to_numpy``)."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise UsageError(
            f"a log cannot be read from {type(frame).__name__}",
            "data",
            "give a path, a data frame with columns user and item, or {user: [item, ...]}",
        )
    names = list(frame.columns)
    found = find_roles([str(name) for name in names], "data frame")
    columns = {role: _series(frame[names[i]]) for role, i in found.items()}
    if not len(columns["user"]):
        raise UsageError("no user with an item", "data frame", "the table has no rows")
    return _typed_events(columns, "frame", lambda row: f"data frame, row {row}")


def from_dict(histories: dict[Any, Iterable[Any]]) -> Events:
    """``{user: [item, ...]}``, oldest first; ids are text or integers."""
    users: list[str] = []
    items: list[str] = []
    for user, history in histories.items():
        where = f"user {user!r}"
        if isinstance(history, (str, bytes)) or not isinstance(history, Iterable):
            raise UsageError(
                f"a history is a list of items, not {type(history).__name__}", where, "[item, ...]"
            )
        before = len(items)
        items += [id_text(item, where) for item in history]
        users += [id_text(user, where)] * (len(items) - before)
    if not items:
        raise UsageError("no user with an item", "{user: [items]}", "give at least two users")
    if len({id_text(user, "") for user in histories}) < len(histories):
        raise UsageError("two users have one name", "{user: [items]}", "1 and '1' are the same id")
    return Events(
        users=_strings(users),
        items=_strings(items),
        times=None,
        format="dict",
        place=lambda row: f"user {users[row]!r}",
    )


def id_text(value: Any, where: str) -> str:
    """An id as text; only text and integers are ids."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    raise UsageError(f"{value!r} is no id", where, "ids are text or integers")


def _typed_events(
    columns: dict[str, pl.Series], kind: str, name_row: Callable[[int], str]
) -> Events:
    ids = {role: _id_column(columns[role], role, name_row) for role in ("user", "item")}
    return to_events({**columns, **ids}, kind, name_row)


def _id_column(column: pl.Series, role: str, name_row: Callable[[int], str]) -> pl.Series:
    missing = column.is_null().arg_true()
    if len(missing):
        raise UsageError(f"no {role}", name_row(missing[0]), "every row needs a user and an item")
    kind = column.dtype
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        raise UsageError(
            f"the {role} column holds {kind}", name_row(0), "ids are text or integers: convert it"
        )
    return column.cast(pl.String)


def _series(column: Any) -> pl.Series:
    """A column of a frame of whatever library as a polars series."""
    if isinstance(column, pl.Series):
        return column
    values = np.asarray(column.to_numpy())
    if values.ndim != 1:
        raise UsageError("two columns have one name", "data frame", "rename one of them")
    if values.dtype.kind == "M":
        return pl.Series(values.astype("datetime64[ns]"))
    if values.dtype.kind != "O":
        return pl.Series(values)
    if all(isinstance(v, str) for v in values):
        return _strings(values.tolist())
    # NaN is how pandas writes "nothing" between texts
    rows = [None if v is None or v != v else id_text(v, "data frame") for v in values]
    return pl.Series(rows, dtype=pl.String)


def _strings(values: list[str]) -> pl.Series:
    try:
        return pl.Series(values, dtype=pl.String)
    except UnicodeEncodeError as error:
        what = f"an id is no text: {error.reason}"
        raise UsageError(what, "data", "ids are Unicode text") from None
