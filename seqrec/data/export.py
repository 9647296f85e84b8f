"""Writing a log back to a file that `read_log` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from seqrec.data.log import InteractionLog


def write_parquet(log: InteractionLog, path: Path) -> None:
    """One row an event, columns user, item and, where the log has times, timestamp."""
    row = np.repeat(np.arange(log.n_users), np.diff(log.offsets))
    columns = {
        "user": pl.Series(log.users, dtype=pl.String).gather(row),
        "item": pl.Series(log.items, dtype=pl.String).gather(log.item_rows),
    }
    if log.times is not None:
        columns["timestamp"] = pl.Series(log.times)
    pl.DataFrame(columns).write_parquet(path)
