"""Random words by counter: what dropout and noise of a captured step are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.backend import anywhere, choose, register
from seqrec_kernels.triton_loader import TritonKernels

__all__ = ["random_bits"]

_triton = TritonKernels("random_bits")
register("random_bits", {"triton": _triton.unsupported, "blocked": anywhere, "reference": anywhere})


def random_bits(seed: Tensor, stream: int, count: int) -> Tensor:
    """Words of 64 random bits, the same on every device.

    Word n is the words 2 (n % 2) (the low half) and 2 (n % 2) + 1 of Philox4x32-10 at the counter
    (n // 2, 0, 0, stream).  In torch that takes some 300 operators on 64-bit integers, which are
    most of a step's launches where there is no kernel for it.

    Args:
        seed: int64, 0-d; read on its device, which is where the words are drawn.
        stream: which use the words are for.
        count: how many, below 2^32.

    Returns:
        int64 ``[count]``.
    """
    one = seed.view(1, 1)
    if choose("random_bits", one, one) == "triton":
        found: Tensor = _triton.forward(seed, stream, count)
        return found
    w0, w1, w2, w3 = philox.words(seed, stream, torch.arange((count + 1) // 2, device=seed.device))
    return torch.stack((w1 << 32 | w0, w3 << 32 | w2), 1).flatten()[:count]
