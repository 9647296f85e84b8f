"""Seeds derived from counters.

Every random choice of a run is a pure function of the run's seed and of *where* in the run it is
made (purpose, epoch, step).  A generator is seeded anew at each step and carries nothing over to
the next, so three integers restore a run bit for bit: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import struct

WEIGHTS = 1  # initial weights
DROPOUT = 2  # dropout masks of a step
EPOCH = 3  # what a method does before an epoch
MIX = 4  # mix ratios of a contrastive term
VIEWS = 5  # augmented views of a step
NEGATIVES = 6  # sampled negatives of a step


def derive(seed: int, purpose: int, *counters: int) -> int:
    """A 63-bit seed for one purpose at one place of a run.

    Args:
        seed: the run's seed, any Python int in the signed 64-bit range.
        purpose: one of this module's constants; keeps two uses at the same place apart.
        counters: the place, for example ``(epoch, step)``.
    """
    words = struct.pack(f"<{2 + len(counters)}q", seed, purpose, *counters)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1
