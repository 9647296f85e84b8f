"""Sources with named columns: CSV, RecBole's ``.inter``, Parquet, data frames; and dicts.

Columns ``user`` or ``user_id``, ``item`` or ``item_id`` are ids; ``time`` or ``timestamp`` orders a
user's events; ``rating`` must hold numbers and is not used. Other columns are not looked at.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.events import Events
from seqrec.data.text import BLANKS, first_line, place, split_words
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
_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon"}


@dataclass(frozen=True)
class Header:
    """The first line of a table.

    Attributes:
        columns: role -> place of its column.
        width: number of columns.
        separator: one character, or "" for runs of blanks.
        typed: do the names carry RecBole's ``:type`` endings?
    """

    columns: dict[str, int]
    width: int
    separator: str
    typed: bool


def find_header(text: bytes, file: str, *, strict: bool = True) -> Header | None:
    """The header of a text whose format nobody has named, or None where the first line is data.

    Raises:
        UsageError: ``strict`` and the line names only one of user and item, so that it would be
            read as a user with strange items.
    """
    line, number, _ = first_line(text)
    for separator in (*_SEPARATORS, ""):
        names = _fields(line, separator)
        roles = [ROLES.get(_plain(name)) for name in names]
        if "user" in roles and "item" in roles:
            return _header(line, separator, place(file, number))
    if strict:
        for separator in (*_SEPARATORS, ""):
            names = _fields(line, separator)
            # between blanks `user` may well be a user's name, `user_id` hardly
            telling = {n for n, role in ROLES.items() if role in ("user", "item")}
            if not separator:
                telling -= {"user", "item"}
            if len(names) > 1 and telling & {_plain(name) for name in names}:
                return _header(line, separator, place(file, number))
    return None


def from_text(text: bytes, file: str, kind: str, header: Header | None = None) -> Events:
    """The rows of a CSV (``kind`` "csv") or of an atomic file ("inter": tabs, nothing is quoted)."""
    line, number, body = first_line(text)
    if header is None:
        separator = "\t" if kind == "inter" else _sniff(line)
        header = _header(line, separator, place(file, number))
    if header.separator:
        columns, lines = _delimited(text[body:], number, header, file, quotes=kind == "csv")
    else:
        columns, lines = _blank_separated(text[body:], number, header, file)
    if not len(lines):
        raise UsageError("no user with an item", file, "there is a header and nothing below it")
    name = _SEPARATORS.get(header.separator, "blank")
    return _events(columns, kind, lambda row: place(file, int(lines[row])), (f"{name}-separated",))


def from_parquet(raw: bytes, file: str) -> Events:
    """The rows of a Parquet file; integer ids become text, dates become numbers."""
    try:
        names = list(pl.read_parquet_schema(io.BytesIO(raw)))
        found = _roles(names, file)
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
    found = _roles([str(name) for name in names], "data frame")
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


# Headers


def _header(line: str, separator: str, where: str) -> Header:
    names = _fields(line, separator)
    return Header(
        columns=_roles(names, where),
        width=len(names),
        separator=separator,
        typed=any(":" in name for name in names),
    )


def _roles(names: list[str], where: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        role = ROLES.get(_plain(name))
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


def _sniff(line: str) -> str:
    """The separator that cuts the line into most fields; runs of blanks if none cuts it."""
    best = max(_SEPARATORS, key=line.count)
    return best if best in line else ""


def _fields(line: str, separator: str) -> list[str]:
    return line.split(separator) if separator else line.split()


def _plain(name: str) -> str:
    """``"User_ID:token"`` -> user_id."""
    return re.sub(r":\w*$", "", name.strip(BLANKS).strip('"').lower()).strip(BLANKS)


# Rows of text


def _blank_separated(
    text: bytes, header_line: int, header: Header, file: str
) -> tuple[dict[str, pl.Series], np.ndarray]:
    words = split_words(text)
    starts = np.flatnonzero(words.first_of_line())
    lines = words.lines[starts] + header_line
    _check_width(np.diff(np.append(starts, len(words.lines))), lines, header, file)
    columns = {
        role: words.text.gather_every(header.width, offset=i) for role, i in header.columns.items()
    }
    return columns, lines


def _delimited(
    text: bytes, header_line: int, header: Header, file: str, *, quotes: bool
) -> tuple[dict[str, pl.Series], np.ndarray]:
    """The wanted columns, and the line every row begins in.

    The rows are counted here and parsed by polars: polars fills short rows up silently, and a row
    with missing columns is a mistake to be named.
    """
    quoted = quotes and b'"' in text
    starts, ends, lines, fields = _rows(text, header.separator, quoted)
    lines += header_line
    if len(starts) and quoted and text.count(b'"') % 2:
        raise UsageError(
            "a quotation mark is not closed", place(file, int(lines[-1])), 'write " as "" in quotes'
        )
    blank = [
        row
        for row in np.flatnonzero(fields != header.width)
        if not text[starts[row] : ends[row]].strip()
    ]
    if blank:
        kept = np.ones(len(starts), dtype=bool)
        kept[blank] = False
        sizes = np.diff(np.append(starts, len(text)))
        text = np.frombuffer(text, dtype=np.uint8)[np.repeat(kept, sizes)].tobytes()
        lines, fields = lines[kept], fields[kept]
    _check_width(fields, lines, header, file)
    if not len(lines):
        return {role: pl.Series(role, [], dtype=pl.String) for role in header.columns}, lines
    frame = pl.read_csv(
        io.BytesIO(text),
        has_header=False,
        separator=header.separator,
        quote_char='"' if quoted else None,
        columns=sorted(header.columns.values()),
        infer_schema=False,
    )
    assert frame.height == len(lines), "the two ways of counting rows disagree"
    in_order = sorted(header.columns, key=header.columns.__getitem__)
    # an empty field comes back as null; here it is an empty text like any other
    columns = {role: frame.to_series(i).fill_null("") for i, role in enumerate(in_order)}
    return columns, lines


def _rows(
    text: bytes, separator: str, quoted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Start, end, line (from 1) and number of fields of every row of a delimited text."""
    characters = np.frombuffer(text, dtype=np.uint8)
    newline = characters == ord("\n")
    cut = characters == ord(separator)
    all_newlines = np.flatnonzero(newline)
    if quoted:
        # an odd number of quotation marks before a character: it stands inside a quoted field
        outside = np.cumsum(characters == ord('"'), dtype=np.uint8) % 2 == 0
        newline &= outside
        cut &= outside
    ends = np.flatnonzero(newline)
    if len(text) and (not len(ends) or ends[-1] != len(text) - 1):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    cuts = np.flatnonzero(cut)
    fields = np.searchsorted(cuts, ends) - np.searchsorted(cuts, starts) + 1
    return starts, ends, np.searchsorted(all_newlines, starts) + 1, fields


def _check_width(fields: np.ndarray, lines: np.ndarray, header: Header, file: str) -> None:
    wrong = np.flatnonzero(fields != header.width)
    if not len(wrong):
        return
    found = int(fields[wrong[0]])
    what = "a row with missing columns" if found < header.width else "a row with too many columns"
    raise UsageError(
        f"{what}: {found} where the header names {header.width}",
        place(file, int(lines[wrong[0]])),
        "every row needs all columns",
    )


# Columns


def _events(
    columns: dict[str, pl.Series],
    kind: str,
    name_row: Callable[[int], str],
    notes: tuple[str, ...] = (),
) -> Events:
    times = None
    for role in ("rating", "time"):
        if role in columns:
            times = _numbers(columns[role], role, name_row)
    return Events(
        users=columns["user"].str.strip_chars(BLANKS),
        items=columns["item"].str.strip_chars(BLANKS),
        times=times if "time" in columns else None,
        format=kind,
        place=name_row,
        notes=notes,
    )


def _typed_events(
    columns: dict[str, pl.Series], kind: str, name_row: Callable[[int], str]
) -> Events:
    ids = {role: _id_column(columns[role], role, name_row) for role in ("user", "item")}
    return _events({**columns, **ids}, kind, name_row)


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


def _numbers(column: pl.Series, role: str, name_row: Callable[[int], str]) -> pl.Series:
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
        raise UsageError(f"an id is no text: {error.reason}", "data", "ids are Unicode text") from None
