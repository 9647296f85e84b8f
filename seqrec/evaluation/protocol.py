"""The protocol card: what a number was measured on, written beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqrec.config import Config
from seqrec.data.split import Split
from seqrec.evaluation.misses import targets_in_input


def protocol_card(
    config: Config, split: Split, *, seen: str | None = None, ties: str | None = None
) -> dict[str, Any]:
    """Everything that two numbers must share before they may stand in one table.

    Args:
        config: of the run.
        split: of the run's log.
        seen: the seen rule, where it is not the configuration's.
        ties: the tie rule, likewise.
    """
    seen = seen or config.evaluation.seen
    ties = ties or config.evaluation.ties
    trained = np.zeros(split.n_items, dtype=bool)
    trained[split.train.values] = True
    return {
        "id": f"{split.name}/{seen}/{ties}",
        "split": split.name,
        **split.drawn,
        "seen": seen,
        "ties": ties,
        "select": config.evaluation.select,
        "users_evaluated": len(split.test.items),
        "targets_in_input": int(targets_in_input(split.test).sum()),
        "targets_never_trained": int((~trained[split.test.items]).sum()),
    }
