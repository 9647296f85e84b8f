"""What ``recommend`` reads: histories, in the formats that ``train`` reads.

Text without a header is one line a history, whatever ``train`` would have made of it: a name (that
of anybody) and items, oldest first. Tables hold one event a row, as for training.
"""

from __future__ import annotations

import os

import numpy as np

from seqrec.data import frames, tables
from seqrec.data.events import Events, number
from seqrec.data.sources import check_format, from_words, kind_of, name_of, read_bytes
from seqrec.data.text import Words, check_text, split_words

History = tuple[str, list[str]]


def read_histories(source: str | os.PathLike[str], *, format: str | None = None) -> list[History]:
    """Histories as (user, items oldest first).

    Args:
        source: a path, or "-" for standard input.
        format: as for ``read_log``; None or "auto": the file tells. Text is one line a history,
            unless it has a header or ``format`` is "pairs".

    Returns:
        For lines: one entry a line that is not blank, in order, a name as often as it stands there;
        a name without items has an empty history. For tables and pairs: one entry a user, in order
        of first appearance.

    Raises:
        UsageError: a source that cannot be read or understood, with file and line.
    """
    forced = check_format(format)
    raw, file = read_bytes(source), name_of(os.fspath(source))
    kind = forced or kind_of(raw, file)
    if kind == "parquet":
        return _by_user(frames.from_parquet(raw, file))
    text = check_text(raw, file)
    if kind in ("csv", "inter"):
        return _by_user(tables.from_text(text, file, kind))
    if kind is None:
        # a history's user may be called `user`, so a header has to name both columns
        header = tables.find_header(text, file, strict=False)
        if header is not None:
            return _by_user(tables.from_text(text, file, "csv", header))
    words = split_words(text)
    return _by_user(from_words(words, file, "pairs")) if kind == "pairs" else _by_line(words)


def _by_line(words: Words) -> list[History]:
    starts = np.flatnonzero(words.first_of_line())
    ends = np.append(starts[1:], len(words.lines))
    text = words.text.to_list()
    return [(text[a], text[a + 1 : b]) for a, b in zip(starts, ends, strict=True)]


def _by_user(events: Events) -> list[History]:
    log = number(events)
    ends = np.cumsum(np.bincount(log.users, minlength=len(log.user_names)))
    items = [log.item_names[v] for v in log.items]
    starts = np.append(0, ends[:-1])
    return [(name, items[a:b]) for name, a, b in zip(log.user_names, starts, ends, strict=True)]
