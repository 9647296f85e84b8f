"""How far a difference between two rankers could be the luck of which users were drawn.

The users of a test set are a sample. Drawing as many anew from them, with replacement, again and
again, shows how a mean over users would have moved (Efron, "Bootstrap Methods", Ann. Statist. 7,
1979). The draws are the same for every ranker, so what two of them share, easy and hard users,
cancels in their difference: the bootstrap is paired.
"""

from __future__ import annotations

import numpy as np

_CELLS = 1 << 22  # drawn users held at once


def paired_bootstrap(
    differences: np.ndarray, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of means over users.

    Args:
        differences: float64 [B, C], a row a user; each column is averaged over users.
        resamples: how often B users are drawn.
        seed: of the draws (numpy's Philox); the same draws serve every column.
        level: the interval's.

    Returns:
        Lower and upper ends, float64 [C] each.

    Raises:
        ValueError: no users.
    """
    users, columns = differences.shape
    if not users:
        raise ValueError("there are no users to draw from")
    generator = np.random.Generator(np.random.Philox(seed))
    means = np.empty((resamples, columns))
    step = max(1, _CELLS // users)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn = generator.integers(users, size=(count, users), dtype=np.int64)
        drawn += users * np.arange(count)[:, None]
        # how often each user was drawn in each resample: the means are one matrix product
        times = np.bincount(drawn.ravel(), minlength=count * users).reshape(count, users)
        means[first : first + count] = times @ differences / users
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
