"""Bytes to checked text, and text to words: what every text format starts with.

Ids are opaque: a run of characters that are not blank (space, tab, carriage return, line, form or
vertical feed). Nothing is parsed as a number here, ``007`` stays ``007``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqrec.errors import UsageError

BLANKS = " \t\r\v\f\n"
_BLANK_TO_NEWLINE = bytes.maketrans(b" \t\r\v\f", b"\n" * 5)
_BOM = b"\xef\xbb\xbf"
# How packed files begin: a reader who sees one wants to hear "unpack", not "not UTF-8".
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class Words:
    """All words of a text in order.

    Attributes:
        text: String series [N].
        lines: int64 [N], the line each word stands in, from 1, never falling.
    """

    text: pl.Series
    lines: np.ndarray

    def first_of_line(self) -> np.ndarray:
        """bool [N]: does the word begin its line?"""
        first = np.ones(len(self.lines), dtype=bool)
        first[1:] = self.lines[1:] != self.lines[:-1]
        return first


def check_text(raw: bytes, file: str) -> bytes:
    """The text of ``raw`` with line feeds only, without a byte order mark.

    Raises:
        UsageError: packed, a NUL byte, or not UTF-8; with the line.
    """
    for magic, name in _PACKED.items():
        if raw.startswith(magic):
            raise UsageError(f"the file is packed ({name}), not text", file, "unpack it first")
    text = raw.removeprefix(_BOM)
    nul = text.find(b"\0")
    if nul >= 0:
        raise UsageError(
            "a NUL byte", place(file, _line_at(text, nul)), "the file must be plain UTF-8 text"
        )
    if not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            where = place(file, _line_at(text, error.start))
            raise UsageError(
                "the text is not UTF-8", where, "save the file as UTF-8 (iconv -t UTF-8)"
            ) from None
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
        if b"\n" not in text:  # line ends of the last century
            text = text.replace(b"\r", b"\n")
    return text


def first_line(text: bytes) -> tuple[str, int, int]:
    """The first line that is not blank: its text, its number from 1, and where the next begins."""
    start = len(text) - len(text.lstrip())
    start = text.rfind(b"\n", 0, start) + 1
    end = text.find(b"\n", start)
    end = len(text) if end < 0 else end
    return text[start:end].decode("utf-8"), text.count(b"\n", 0, start) + 1, min(end + 1, len(text))


def split_words(text: bytes) -> Words:
    """Every run of characters that are not blank, with its line."""
    one_a_line = text.translate(_BLANK_TO_NEWLINE)
    filled = np.frombuffer(one_a_line, dtype=np.uint8) != ord("\n")
    begins = filled.copy()
    begins[1:] &= ~filled[:-1]
    starts = np.flatnonzero(begins)
    newlines = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
    lines = np.searchsorted(newlines, starts) + 1
    if not len(starts):
        return Words(pl.Series("words", [], dtype=pl.String), lines)
    # NUL can separate nothing: check_text has refused it. So each line is one column.
    words = pl.read_csv(
        io.BytesIO(one_a_line),
        has_header=False,
        separator="\0",
        quote_char=None,
        schema={"words": pl.String},
    )["words"]
    words = words.filter(words.is_not_null() & (words != ""))
    assert len(words) == len(starts), "the two ways of counting words disagree"
    return Words(words, lines)


def place(file: str, line: int) -> str:
    """How a message names a line of a file."""
    return f"{file}:{line}"


def _line_at(text: bytes, position: int) -> int:
    before = text[:position].replace(b"\r\n", b"\n")
    return before.count(b"\n") + 1 if b"\n" in text else before.count(b"\r") + 1
