"""Finding out what a source is, and reading its rows.

Every reader returns ``Events``. Paths are read once, whole: the same bytes are hashed and parsed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data import frames, tables
from seqrec.data.events import Events, number_names
from seqrec.data.text import Words, check_text, place, split_words
from seqrec.errors import UsageError

FORMATS = ("lines", "pairs", "inter", "csv", "parquet")


def read_events(source: Any, format: str | None) -> tuple[bytes | None, Events, str]:
    """The bytes of a source (None for Python objects), its rows, and its name in messages."""
    forced = check_format(format)
    if isinstance(source, (str, os.PathLike)):
        raw, file = read_bytes(source), os.fspath(source)
        return raw, _parse(raw, file, forced), str(file)
    if forced:
        raise UsageError(
            f"format {forced!r} is for files", type(source).__name__, "leave data.format out"
        )
    if isinstance(source, dict):
        return None, frames.from_dict(source), "{user: [items]}"
    return None, frames.from_frame(source), "data frame"


def check_format(format: str | None) -> str | None:
    """The forced format, or None to look at the file."""
    if format in (None, "", "auto"):
        return None
    if format not in FORMATS:
        known = ", ".join(("auto", *FORMATS))
        raise UsageError(f"unknown format {format!r}", "data.format", f"the formats are: {known}")
    return format


def read_bytes(source: str | os.PathLike[str]) -> bytes:
    """All bytes of a file ("-" is standard input).

    Raises:
        UsageError: missing, a folder, not readable, or empty.
    """
    file = os.fspath(source)
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except FileNotFoundError:
        raise UsageError("no such file", file, "check the path") from None
    except IsADirectoryError:
        raise UsageError("this is a folder", file, "name a file in it") from None
    except PermissionError:
        raise UsageError("no permission to read the file", file, "make it readable") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"the file cannot be read: {reason}", file, "check the path") from None
    if not raw.strip():
        raise UsageError("the file is empty", name_of(file), "it must hold users and items")
    return raw


def name_of(file: str) -> str:
    """How messages name a path."""
    return "standard input" if file == "-" else file


def _parse(raw: bytes, file: str, forced: str | None) -> Events:
    kind = forced or kind_of(raw, file)
    if kind == "parquet":
        return frames.from_parquet(raw, file)
    text = check_text(raw, file)
    if kind in ("csv", "inter"):
        return tables.from_text(text, file, kind)
    if kind is None:
        header = tables.find_header(text, file)
        if header is not None:
            return tables.from_text(text, file, "inter" if header.typed else "csv", header)
    return from_words(split_words(text), file, kind)


def kind_of(raw: bytes, file: str) -> str | None:
    """What the name or the first bytes say; None: text that has to be looked at."""
    suffix = Path(file).suffix.lower()
    if suffix in (".parquet", ".pq") or raw.startswith(b"PAR1"):
        return "parquet"
    return {".inter": "inter", ".csv": "csv", ".tsv": "csv"}.get(suffix)


def from_words(words: Words, file: str, kind: str | None) -> Events:
    """Text without a header: ``lines``, or ``pairs`` where every line has exactly two fields."""
    if not len(words.lines):
        raise UsageError("the file is empty", file, "it must hold users and items")
    fields = np.diff(np.append(np.flatnonzero(words.first_of_line()), len(words.lines)))
    odd = np.flatnonzero(fields != 2)
    if kind == "pairs" and len(odd):
        line = int(words.lines[words.first_of_line()][odd[0]])
        raise UsageError(
            f"{fields[odd[0]]} fields where a pair has 2",
            place(file, line),
            "every line must be `user item`; use data.format=lines for one line a user",
        )
    if kind == "pairs" or (kind is None and not len(odd)):
        return _pairs(words, file, guessed=kind is None)
    return _lines(words, file, int(words.lines[words.first_of_line()][odd[0]]) if len(odd) else 0)


def _pairs(words: Words, file: str, *, guessed: bool) -> Events:
    note = "every line has exactly two fields: read as `user item` pairs"
    if guessed:
        note += " (one line a user: data.format=lines)"
    lines = words.lines[::2]
    return Events(
        users=words.text.gather_every(2),
        items=words.text.gather_every(2, offset=1),
        times=None,
        format="pairs",
        place=lambda row: place(file, int(lines[row])),
        notes=(note,),
    )


def _lines(words: Words, file: str, odd_line: int) -> Events:
    """One line a user. ``odd_line``: a line that shows the file to be no list of pairs, or 0."""
    first = words.first_of_line()
    names = words.text.filter(pl.Series(first))
    _check_one_line_a_user(names, words.lines[first], file, odd_line)
    lines = words.lines[~first]
    if not len(lines):
        raise UsageError(
            "no user with an item",
            file,
            "a line is `user item item ...` with blanks between; separators , ; need a header that "
            "names the columns user and item",
        )
    without = len(names) - 1 - np.count_nonzero(np.diff(lines))
    notes: tuple[str, ...] = ("one line a user, oldest event first",)
    if without:
        notes += (f"{without:,} lines name a user without items: skipped",)
    owner = np.cumsum(first)[~first] - 1
    return Events(
        users=names.gather(owner),
        items=words.text.filter(pl.Series(~first)),
        times=None,
        format="lines",
        place=lambda row: place(file, int(lines[row])),
        notes=notes,
    )


def _check_one_line_a_user(names: pl.Series, lines: np.ndarray, file: str, odd_line: int) -> None:
    if names.n_unique() == len(names):
        return
    numbers, _ = number_names(names)
    # the first line whose user an earlier line has named
    fresh = np.maximum.accumulate(np.append(-1, numbers[:-1])) < numbers
    again = int(np.argmin(fresh))
    before = int(np.argmax(numbers == numbers[again]))
    mend = "put all items of a user on one line"
    if odd_line:
        mend += f", or `user item` on every line (line {odd_line} has not two fields)"
    raise UsageError(
        f"user {names[again]!r} is on two lines",
        f"{place(file, int(lines[before]))} and {place(file, int(lines[again]))}",
        mend,
    )
