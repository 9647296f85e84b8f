"""Tile sizes of the triton kernels, and the device functions they share.

This module imports triton; it is imported by kernels only, never by ``import seqrec_kernels``.

**Tiles** are looked up, not tuned: a pure function of the chip's shared memory, the dtype and the
width. Nothing depends on the number of rows or items, so a row's result does not either. The table
was filled by compiling (``tests/kernels/test_triton_compiles.py`` holds it to: shared memory under
the limit, nothing spilled, tensor-core instructions there); no entry has been timed on a GPU.

**Precision.** float16 and bfloat16 operands go into the tensor cores as they are, with float32 sums.
float32 operands go there in three TF32 products of their upper and lower halves ("tf32x3", about
22 bits), which differs from float32 in the last bits; only a loss under
``torch.set_float32_matmul_precision("high")`` takes a single TF32 product.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels.triton_loader import INTERPRETED

# ---- sizes ---------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """How one kernel cuts its problem."""

    rows: int  # queries of a tile
    items: int  # items of a tile
    depth: int  # of the width D that one product takes; D is covered chunk by chunk
    out: int  # of the width D that one program's gradient holds (backward kernels)
    warps: int
    stages: int


# bytes of shared memory a block may have, by compute capability; others get the smallest
_SHARED = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}
_LEAST_SHARED = 99 << 10

# tests make tiles tiny with this
OVERRIDE: Tile | None = None


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that one block may use on a chip, e.g. 90 for sm_90."""
    return _SHARED.get(capability, _LEAST_SHARED)
