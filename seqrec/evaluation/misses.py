"""Targets that no ranking could show, because the user's input already holds them."""

from __future__ import annotations

import numpy as np

from seqrec.data.split import Targets

# Greater than any K, whatever the size of the catalogue, and plainly no place in one.
MISS = 1 << 40


def targets_in_input(targets: Targets) -> np.ndarray:
    """bool [B]: is the target among the user's own input?"""
    inputs = targets.inputs
    hit = inputs.values == np.repeat(targets.items, inputs.lengths())
    found = np.zeros(len(targets.items), dtype=bool)
    found[inputs.row_of_values()[hit]] = True
    return found


def with_misses(
    greater: np.ndarray, equal: np.ndarray, targets: Targets, seen: str
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks in which, under ``exclude``, a target that the input holds is a miss in every metric.

    Such a target is no candidate and `recommend` would not show it, whatever rank it was given:
    it gets greater = ``MISS``, equal = 0. Under the other rules nothing changes.

    Args:
        greater, equal: int64 [B], a rank a target.
        targets: the B targets.
        seen: "exclude", "include" or "zero".
    """
    if seen != "exclude":
        return greater, equal
    missed = targets_in_input(targets)
    return np.where(missed, MISS, greater), np.where(missed, 0, equal)
