"""A log in a few lines: what is in it, how it was read, what would be evaluated."""

from __future__ import annotations

import numpy as np

from seqrec.data.log import InteractionLog
from seqrec.data.split import Jagged, Split, split_log
from seqrec.errors import UsageError


def describe(
    log: InteractionLog, split: str = "leave-one-out", seed: int = 0, roles: str = ""
) -> list[str]:
    """Lines of ``name  value`` for ``seqrec data``.

    Args:
        log: the log as used, after any filter.
        split, seed, roles: as :func:`~seqrec.data.split.split_log` takes them; the split whose
            evaluated users are counted.
    """
    facts = [
        ("file", log.file),
        ("format", ", ".join((log.format, *log.notes[:1]))),
        ("sha256", log.sha256),
        ("users", f"{log.n_users:,}"),
        ("items", f"{log.n_items:,}"),
        ("interactions", f"{log.n_interactions:,}"),
        ("density", f"{log.n_interactions / (log.n_users * log.n_items):.5%}"),
        ("events a user", _spread(np.diff(log.offsets))),
        ("events an item", _spread(np.bincount(log.item_rows, minlength=log.n_items))),
        ("repeats", _repeats(log)),
        ("order", _order(log)),
        *(("note", note) for note in log.notes[1:]),
        *_evaluation(log, split, seed, roles),
    ]
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def remarks(log: InteractionLog, split: Split) -> list[str]:
    """What a training says of its log before it begins: how it was read, ordered and cut."""
    order = [] if log.tied_share is None else [f"events ordered {_order(log)}"]
    return [*log.notes, *order, _evaluated(split)]


def _spread(counts: np.ndarray) -> str:
    return (
        f"mean {counts.mean():.2f}, median {np.median(counts):g}, "
        f"{counts.min():,} to {counts.max():,}"
    )


def _repeats(log: InteractionLog) -> str:
    users = Jagged(log.offsets, log.item_rows).row_of_values()
    pairs = np.sort(users * log.n_items + log.item_rows)
    again = int((pairs[1:] == pairs[:-1]).sum())
    if not again:
        return "none: no user has an item twice"
    adjacent = int(((log.item_rows[1:] == log.item_rows[:-1]) & (users[1:] == users[:-1])).sum())
    return (
        f"{again:,} events ({again / log.n_interactions:.2%}) repeat an item of the same user, "
        f"{adjacent:,} of them right after it (data.repeats)"
    )


def _order(log: InteractionLog) -> str:
    if log.tied_share is None:
        return "as in the file, oldest first"
    return (
        f"by time; {log.tied_share:.2%} of the events share user and time with another "
        "and stand as in the file"
    )


def _evaluation(log: InteractionLog, name: str, seed: int, roles: str) -> list[tuple[str, str]]:
    try:
        split = split_log(log, name, seed, roles)
    except UsageError as error:
        return [("evaluated", f"nothing: {error}")]
    return [
        ("split", f"{split.name}: {_evaluated(split)}"),
        ("trained on", f"{len(split.train.values):,} interactions"),
        ("never trained", _never_trained(split)),
    ]


def _evaluated(split: Split) -> str:
    text = f"{len(split.test.users):,} users evaluated"
    return f"{text}, {split.remark}" if split.remark else text


def _never_trained(split: Split) -> str:
    trained = np.bincount(split.train.values, minlength=split.n_items) > 0
    return (
        f"{int((~trained).sum()):,} items occur only in held-out places; "
        f"{int((~trained[split.test.items]).sum()):,} test targets are among them"
    )
