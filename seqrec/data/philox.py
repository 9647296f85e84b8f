"""Counter-based random numbers for shuffles and synthetic logs, as numpy arrays.

The generator is ``seqrec_kernels.philox``: whoever asks for number (seed, stream, counters) gets
the same bits on every machine and in every order of asking, which is what lets three integers
restore a run.
"""

from __future__ import annotations

import numpy as np
import torch

from seqrec_kernels import philox

# Streams keep the uses of one seed apart; the low ones belong to seqrec_kernels.
STREAM_SHUFFLE = 16  # c0 = row, c1 = epoch
STREAM_USERS, STREAM_EVENTS, STREAM_SUCCESSORS = 17, 18, 19  # of a synthetic log
STREAM_SPLIT = 20  # c0 = user
STREAM_SEQUENCES, STREAM_ITEMS = 21, 22  # of augmented views: c0 = sequence or item, c1 = view
STREAM_POSITIVES = 23  # c0 = row, c1 = epoch
STREAM_NEGATIVES = 24  # c0 = row of a batch, c1 = draw / 4
STREAM_POSITIVE_MIX = 26  # c0 = row of a batch
STREAM_DRAWS = 25  # of a captured step: c0 = place in what is drawn

_A_TURN = 1 << 16


def words(seed: int, stream: int, c0: np.ndarray, c1: np.ndarray | int = 0) -> list[np.ndarray]:
    """Four random 32-bit words at each counter: int64 arrays with values in [0, 2^32).

    Args:
        seed: a Python int; its low 64 bits count.
        stream: which use the numbers are for.
        c0, c1: int64 counters (their low 32 bits count) that broadcast.
    """
    counters = torch.from_numpy(np.ascontiguousarray(c0, dtype=np.int64))
    other = torch.from_numpy(np.asarray(c1, dtype=np.int64))
    return [word.numpy() for word in philox.words(seed, stream, counters, other)]


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which ``n`` things are visited in ``epoch``, int64 [n], n below 2^32.

    Every thing gets 63 random bits at counter (its index, epoch); sorting by them shuffles. Equal
    bits keep the order of the indices, so the result is one, whatever sorts.
    """
    key = np.empty(n, dtype=np.int64)
    for start in range(0, n, _A_TURN):  # what fits the cache is drawn several times faster
        rows = np.arange(start, min(start + _A_TURN, n))
        high, low, *_ = words(seed, STREAM_SHUFFLE, rows, epoch)
        key[rows] = high << 31 | low >> 1
    return np.argsort(key, kind="stable").astype(np.int64, copy=False)


def random_order(seed: int, things: np.ndarray) -> np.ndarray:
    """An order of ``things`` that each enters with a number of its own: int64 [n].

    Unlike in ``permutation`` the number belongs to the thing and not to its place, so a user keeps
    it when others come or go.

    Args:
        seed: a Python int.
        things: int64 [n], distinct.
    """
    high, low, *_ = words(seed, STREAM_SPLIT, things)
    return np.argsort(high << 31 | low >> 1, kind="stable").astype(np.int64, copy=False)
