"""From a file to training sequences, targets and batches."""

from __future__ import annotations

from seqrec.data.describe import describe
from seqrec.data.histories import read_histories
from seqrec.data.log import InteractionLog, read_log
from seqrec.data.split import Jagged, Split, Targets, split_log

__all__ = [
    "InteractionLog",
    "Jagged",
    "Split",
    "Targets",
    "describe",
    "read_histories",
    "read_log",
    "split_log",
]
