"""Philox4x32-10 in torch: counter-based random numbers that every device computes alike.

A random number here is a pure function of ``(seed, stream, c0, c1)``. There is no state to save, no
order to keep, and any part of a batch can be drawn anywhere. The generator is the ten-round Philox
of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), with

    key     = (low 32 bits of seed, high 32 bits of seed)
    counter = (c0, c1, 0, stream)
    uniform = (word0 >> 8) * 2**-24                 in [0, 1), exact in float32
    choice among m = (word0 * m) >> 32              in [0, m)

A round maps the four 32-bit words ``(x0, x1, x2, x3)`` under the key ``(k0, k1)`` to

    (hi(M1 x2) ^ x1 ^ k0,  lo(M1 x2),  hi(M0 x0) ^ x3 ^ k1,  lo(M0 x0))

and then advances the key by the Weyl constants. torch has no unsigned 64-bit product, so words are
kept in int64 and each 32 x 32 bit product is formed from 16-bit halves of one factor, which keeps
every intermediate below 2**49.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_MIX = 1  # c0 = k, c1 = r: mix ratios of pairs
STREAM_RERANK = 2  # c0 = row: the draw among re-ranked candidates
STREAM_DROPOUT = 3  # c0 = row, c1 = column // 8: dropout of rows of numbers, by `sixteens`
STREAM_ATTENTION = 4  # c0 = query row * heads + head, c1 = key row // 8: of attention weights

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def _product(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``word * constant``, both factors below 2**32."""
    low = (word & 0xFFFF) * constant  # below 2**48
    high = (word >> 16) * constant + (low >> 16)  # below 2**49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def words(seed: int | Tensor, stream: int, c0: Tensor, c1: Tensor | int = 0) -> tuple[Tensor, ...]:
    """The four output words of each counter, as int64 in [0, 2**32).

    Args:
        seed: a Python int (its low 64 bits count) or a 0-d int64 tensor on the counters' device,
            which is read there.
        stream: which use the numbers are for; uses never share numbers.
        c0, c1: int64 counters (their low 32 bits count), broadcast against each other.
    """
    # >> keeps the sign of a negative seed; the mask drops it
    k0: int | Tensor = seed & _MASK
    k1: int | Tensor = (seed >> 32) & _MASK
    if isinstance(c1, int):  # filled there; as_tensor would copy it from the host
        c1 = torch.full((), c1 & _MASK, dtype=torch.int64, device=c0.device)
    x0, x1 = torch.broadcast_tensors(c0 & _MASK, c1 & _MASK)
    x2, x3 = torch.zeros_like(x0), torch.full_like(x0, stream)
    for _ in range(10):
        high0, low0 = _product(x0, _M0)
        high1, low1 = _product(x2, _M1)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return x0, x1, x2, x3


def uniform(seed: int | Tensor, stream: int, c0: Tensor, c1: Tensor | int = 0) -> Tensor:
    """float32 numbers in [0, 1), multiples of 2**-24, in the counters' broadcast shape."""
    return (words(seed, stream, c0, c1)[0] >> 8).to(torch.float32) * 2.0**-24


def choice(
    seed: int | Tensor, stream: int, m: int | Tensor, c0: Tensor, c1: Tensor | int = 0
) -> Tensor:
    """int64 draws from 0 .. m - 1, for ``0 < m < 2**31``."""
    return (words(seed, stream, c0, c1)[0] * m) >> 32


def sixteens(seed: int | Tensor, stream: int, c0: Tensor, c1: Tensor | int = 0) -> Tensor:
    """Eight numbers of 16 bits a counter, int64 in [0, 2**16), as a further dimension.

    Number ``n`` is half ``n % 2`` (0 the low one) of word ``n // 2``.
    """
    four = torch.stack(words(seed, stream, c0, c1), -1)
    return torch.stack((four & 0xFFFF, four >> 16), -1).flatten(-2)
