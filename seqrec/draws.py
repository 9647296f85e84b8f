"""Where the random numbers of a step come from: a generator, or a seed that stands on the device.

The eager step draws from a `torch.Generator` that the host seeds anew for every step.  A captured
step cannot: its kernels are replayed with the arguments they were captured with.  There a
:class:`Draws` takes the generator's place.  It knows one seed as a tensor, and whoever draws gets
a seed of their own that follows from it, for the counter-based numbers of `seqrec_kernels.philox`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec.data.philox import STREAM_DRAWS
from seqrec_kernels.ops.random_bits import random_bits


class Draws:
    """Seeds that follow from one.

    Args:
        root: int64, 0-d, on the device that draws; another one at every step.
    """

    def __init__(self, root: Tensor) -> None:
        self._root = root
        self._asked = 0

    def seed(self) -> Tensor:
        """The next seed, int64, 0-d: as many steps behind the root as seeds were asked for."""
        self._asked += 1
        return self._root + self._asked


Randomness = torch.Generator | Draws


def seed(source: Randomness, device: torch.device) -> Tensor:
    """A seed for an operator that draws its own numbers: int64, 0-d."""
    if isinstance(source, Draws):
        return source.seed()
    drawn = torch.empty((), dtype=torch.int64, device=device)
    return drawn.random_(-(2**63), None, generator=source)


def words(count: int, source: Randomness, device: torch.device) -> Tensor:
    """Words of 64 random bits: int64 [count]."""
    if isinstance(source, Draws):
        return random_bits(source.seed(), STREAM_DRAWS, count)
    drawn = torch.empty(count, dtype=torch.int64, device=device)
    return drawn.random_(-(2**63), None, generator=source)


def normal(rows: int, columns: int, source: Randomness, device: torch.device) -> Tensor:
    """Standard normal numbers: float32 [rows, columns].

    A word of a `Draws` becomes a pair by Box and Muller's transform of its halves; the largest
    number there is is sqrt(2 log 2^24) = 5.8.
    """
    if not isinstance(source, Draws):
        return torch.empty(rows, columns, device=device).normal_(generator=source)
    drawn = words((rows * columns + 1) // 2, source, device)
    # in (0, 1], exact in float32
    halves = (((half & 0xFFFFFF) + 1).to(torch.float32) * 2.0**-24 for half in (drawn >> 40, drawn))
    high, low = halves
    radius, angle = (-2.0 * high.log()).sqrt(), low * (2.0 * math.pi)
    pairs = torch.cat((radius * angle.cos(), radius * angle.sin()))
    return pairs[: rows * columns].view(rows, columns)
