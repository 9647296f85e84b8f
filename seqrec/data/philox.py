"""Philox4x32-10 in numpy: random numbers that are a function of a key and a counter, nothing else.

Whoever asks for number (seed, counter) gets the same bits on every machine and in every order of
asking, which is what lets a run be restored from three integers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

# Streams keep the uses of one seed apart. 1 and 2 belong to seqrec_kernels (mix, re-rank).
STREAM_SHUFFLE = 16
STREAM_SYNTHETIC = 17

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(
    seed: int, c0: np.ndarray | int, c1: np.ndarray | int, stream: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four 32-bit words at key ``seed`` and counter ``(c0, c1, 0, stream)``.

    Args:
        seed: the key; its low and high 32 bits are used, so any Python int will do.
        c0, c1: counters in [0, 2^32), integers or integer arrays that broadcast.
        stream: the use the numbers are for, so that two uses of a seed never meet.

    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    shape = np.broadcast_shapes(np.shape(c0), np.shape(c1))
    x0 = np.broadcast_to(np.asarray(c0, dtype=np.uint64), shape).copy()
    x1 = np.broadcast_to(np.asarray(c1, dtype=np.uint64), shape).copy()
    x2 = np.zeros(shape, dtype=np.uint64)
    x3 = np.full(shape, stream, dtype=np.uint64)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0 = (product1 >> _SHIFT) ^ x1 ^ np.uint64(k0)
        x1 = product1 & _LOW
        x2 = (product0 >> _SHIFT) ^ x3 ^ np.uint64(k1)
        x3 = product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(x.astype(np.uint32) for x in (x0, x1, x2, x3))  # type: ignore[return-value]


def uniform(seed: int, c0: np.ndarray | int, c1: np.ndarray | int, stream: int) -> np.ndarray:
    """Numbers in [0, 1) with 24 random bits, ``(word0 >> 8) * 2^-24``, float64."""
    return (philox(seed, c0, c1, stream)[0] >> np.uint32(8)) * 2.0**-24


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which ``n`` things are visited in ``epoch``, int64 [n].

    Every thing gets a 64-bit number at counter (its index, epoch); sorting by it shuffles. Equal
    numbers keep the order of their indices, so the result is one, whatever sorts.
    """
    words = philox(seed, np.arange(n, dtype=np.uint64), epoch, STREAM_SHUFFLE)
    key = (words[0].astype(np.uint64) << _SHIFT) | words[1]
    return np.argsort(key, kind="stable").astype(np.int64, copy=False)
