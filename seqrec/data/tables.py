"""Text tables with a header: CSV and RecBole's atomic ``.inter`` files."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqrec.data.columns import ROLES, find_roles, plain_name, to_events
from seqrec.data.events import Events
from seqrec.data.text import first_line, place, split_words
from seqrec.errors import UsageError

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
        roles = [ROLES.get(plain_name(name)) for name in names]
        if "user" in roles and "item" in roles:
            return _header(line, separator, place(file, number))
    if strict:
        for separator in (*_SEPARATORS, ""):
            names = _fields(line, separator)
            # between blanks `user` may well be a user's name, `user_id` hardly
            telling = {n for n, role in ROLES.items() if role in ("user", "item")}
            if not separator:
                telling -= {"user", "item"}
            if len(names) > 1 and telling & {plain_name(name) for name in names}:
                return _header(line, separator, place(file, number))
    return None


def from_text(text: bytes, file: str, kind: str, header: Header | None = None) -> Events:
    """The rows of a CSV or of an atomic file (``kind`` "inter": tabs, and nothing is quoted)."""
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
    return to_events(
        columns, kind, lambda row: place(file, int(lines[row])), (f"{name}-separated",)
    )


# Headers


def _header(line: str, separator: str, where: str) -> Header:
    names = _fields(line, separator)
    return Header(
        columns=find_roles(names, where),
        width=len(names),
        separator=separator,
        typed=any(":" in name for name in names),
    )


def _sniff(line: str) -> str:
    """The separator that cuts the line into most fields; runs of blanks if none cuts it."""
    best = max(_SEPARATORS, key=line.count)
    return best if best in line else ""


def _fields(line: str, separator: str) -> list[str]:
    return line.split(separator) if separator else line.split()


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
    if quoted:
        _check_quotes(text, header_line, header.separator, file)
    starts, ends, lines, fields = _rows(text, header.separator, quoted)
    lines += header_line
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
    inner = np.empty(0, dtype=np.int64)
    if quoted:
        # an odd number of quotation marks before a character: it stands inside a quoted field
        outside = np.cumsum(characters == ord('"'), dtype=np.uint8) % 2 == 0
        inner = np.flatnonzero(newline & ~outside)
        newline &= outside
        cut &= outside
    ends = np.flatnonzero(newline)
    if len(text) and (not len(ends) or ends[-1] != len(text) - 1):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    fields = np.diff(np.searchsorted(np.flatnonzero(cut), ends), prepend=0) + 1
    lines = np.arange(1, len(starts) + 1) + np.searchsorted(inner, starts)
    return starts, ends, lines, fields


def _check_quotes(text: bytes, header_line: int, separator: str, file: str) -> None:
    """Quotation marks enclose whole fields; within them one is written twice."""
    characters = np.frombuffer(text, dtype=np.uint8)
    marks = np.flatnonzero(characters == ord('"'))
    # every second mark closes; "" within a field closes and opens again
    border = (ord(separator), ord("\n"), ord('"'))
    opening, closing = marks[::2], marks[1::2]
    before = characters[np.maximum(opening - 1, 0)]
    after = characters[np.minimum(closing + 1, len(characters) - 1)]
    loose = np.concatenate(
        (
            opening[(opening > 0) & ~np.isin(before, border)],
            closing[(closing < len(characters) - 1) & ~np.isin(after, border)],
        )
    )
    if not len(loose) and len(marks) % 2 == 0:
        return
    what = "a quotation mark within a field" if len(loose) else "a quotation mark is not closed"
    position = int(loose.min()) if len(loose) else int(marks[-1])
    line = header_line + 1 + text.count(b"\n", 0, position)
    raise UsageError(what, place(file, line), 'put the whole field in quotes and write " as ""')


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
