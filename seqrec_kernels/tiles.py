"""Tile sizes of the triton kernels, and the device functions they share.

This module imports triton; it is imported by kernels only, never by ``import seqrec_kernels``.

**Tiles** are looked up, not tuned: a function of the chip, the dtype and the width alone, and not
of the number of rows or items. The table was filled by compiling, and
``tests/kernels/test_triton_compiles.py`` holds it to what that showed: shared memory under the
limit, nothing spilled, tensor-core instructions there. No entry has been timed on a GPU.

**Precision.** float16 and bfloat16 operands go into the tensor cores as they are, with float32
sums. float32 operands go there in three TF32 products of their upper and lower halves ("tf32x3",
about 22 bits), which differs from float32 in the last bits; only a loss under
``torch.set_float32_matmul_precision("high")`` takes a single TF32 product.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

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
# chips whose products read their operands from shared memory (wgmma, tcgen05)
_FROM_SHARED = (90, 100, 103)

# tests make tiles tiny with this
OVERRIDE: Tile | None = None


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that one block may use on a chip, e.g. 90 for sm_90."""
    return _SHARED.get(capability, _LEAST_SHARED)


def tile(kind: str, dtype: torch.dtype, depth: int, capability: int) -> Tile:
    """The tile of one kernel.

    Args:
        kind: "scores" (products reduced along the items by the loss), "ranks" (by the ranking
            operators), "rows" (a gradient of queries) or "columns" (a gradient of items).
        dtype: of the operands. depth: the width D. capability: e.g. 90 for sm_90.
    """
    if OVERRIDE is not None:
        return OVERRIDE
    width = max(16, triton.next_power_of_2(depth))
    if dtype == torch.float32:
        # operands are split in registers: the width goes through in chunks of 32
        if kind == "scores":
            return Tile(64, 128, min(width, 32), 0, 8, 2)
        if kind == "ranks":
            # where all of a product is in registers (mma.sync), beside the comparisons, less fits
            if capability not in _FROM_SHARED:
                return Tile(64, 64, 16, 0, 4, 2)
            return Tile(64, 128, min(width, 32), 0, 8, 2)
        return Tile(64, 32, min(width, 32), min(width, 128), 8, 1)
    if kind == "ranks" and width <= 32 and capability not in _FROM_SHARED:
        return Tile(64, 64, width, 0, 4, 3)  # one count of 128 x 64 spills at width 32
    if kind in ("scores", "ranks"):
        return Tile(128, 64, min(width, 128), 0, 8, 3 if width <= 128 else 2)
    if kind == "rows" and width <= 128:
        return Tile(128, 64, width, width, 8, 2)
    if kind == "rows" and width == 256 and shared_limit(capability) > _LEAST_SHARED:
        return Tile(64, 64, 256, 256, 8, 2)
    if kind == "columns" and width <= 64:
        return Tile(64, 128, width, width, 8, 2)
    return Tile(64, 64, 128, 128, 8, 2)


def pair_tile(kind: str, dtype: torch.dtype, depth: int) -> Tile:
    """The tile of a contrastive kernel, whose ``rows`` are anchors and ``items`` negatives.

    A pair there has a dozen values in registers, and these kernels wait for exponentials before
    they wait for products: tiles are small.

    Args:
        kind: "pairs" (the loss), "rows" (gradient of the anchors), "columns" (of the negatives), or
            "mixed rows" and "mixed columns", where mixed negatives pull their negatives too or
            draw their ratios.
        dtype: of the operands. depth: the width D.
    """
    if OVERRIDE is not None:
        return OVERRIDE
    width = max(16, triton.next_power_of_2(depth))
    narrow = dtype != torch.float32
    # halves of float32 operands are in registers too, so never all of an anchor at once
    chunk = min(width, 128) if narrow else min(max(width // 2, 16), 32)
    out = min(width, 128)
    if kind == "pairs":
        return Tile(64, 64 if narrow else 32, chunk, 0, 8, 2)
    few = 16 if kind.startswith("mixed") else 32
    if kind.endswith("rows"):
        return Tile(64, few, chunk, out, 8, 2 if narrow else 1)
    if few == 16 or (width <= 32 and not narrow):
        return Tile(16, 64, min(chunk, 64), out, 8, 2)
    return Tile(few, 64, chunk, out, 8, 2)


def attention_tile(kind: str, dtype: torch.dtype, size: int, last: bool) -> Tile:
    """The tile of an attention kernel, whose ``rows`` are queries and ``items`` keys.

    A head is never cut. With one query a sequence the queries of a tile share no key: few of them
    meet as many keys as they have at all.

    Args:
        kind: "forward", "rows" (gradient of the queries) or "columns" (of keys and values).
        dtype: of the operands. size: of a head. last: one query a sequence.
    """
    if OVERRIDE is not None:
        return OVERRIDE
    width = max(16, triton.next_power_of_2(size))
    narrow = dtype != torch.float32
    if not narrow:
        return Tile(16 if last else 32, 32, width, width, 4 if width <= 32 else 8, 1)
    # of a pair the backward has twice as much in registers
    items = 64 if kind == "forward" and width <= 64 else 32
    warps = 4 if width <= (32 if kind == "columns" else 64) else 8
    return Tile(16 if last else 64, items, width, width, warps, 2)


def capability(tensor: Tensor) -> int:
    """The compute capability of a tensor's device, e.g. 90; of the interpreter, the smallest."""
    if not tensor.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


# tests make these small and large
PROGRAMS = 288  # about two for each multiprocessor of sm_80 (108), sm_90 (132) and sm_100 (148)
LEAST = 4  # tiles of a part


def splits(blocks: int, tiles: int) -> tuple[int, int]:
    """Into how many parts to cut a loop over ``tiles`` run by ``blocks`` programs, and their size.

    Enough programs to fill a chip, and at least ``LEAST`` tiles each.
    """
    parts = max(1, PROGRAMS // blocks)
    size = max(-(-tiles // parts), LEAST)
    return -(-tiles // size), size


# ---- launching -----------------------------------------------------------------------------------


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one: a launch goes to that, whatever it is given."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dense(matrix: Tensor) -> Tensor:
    """``matrix`` with its rows one after another, copied only where they are not."""
    return matrix.detach().contiguous()


def dense_rows(table: Tensor) -> Tensor:
    """``table`` with each row in one piece, copied only where it is not; rows may lie anywhere."""
    table = table.detach()
    return table if table.stride(1) == 1 or table.shape[1] == 1 else table.contiguous()


# ---- device functions ----------------------------------------------------------------------------

_UPCAST = tl.constexpr(INTERPRETED)
_HALF_MAX = tl.constexpr(torch.finfo(torch.float16).max)


@triton.jit
def dot(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """``b_acc + b_a @ b_b``, sums in float32."""
    if _UPCAST:  # numpy knows no bfloat16; products of narrow floats are exact in float32
        b_a = b_a.to(tl.float32)
        b_b = b_b.to(tl.float32)
    return tl.dot(b_a, b_b, b_acc, input_precision=PRECISION)


@triton.jit
def load_rows(
    table, i_row, n_rows, i_d,
    STRIDE: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows ``i_row ..`` and columns ``i_d ..`` of a table, 0 outside it: ``[BR, BD]``."""
    o_r = tl.arange(0, BR)
    o_d = i_d + tl.arange(0, BD)
    m_r = o_r < tl.minimum(n_rows - i_row, BR).to(tl.int32)
    if STRIDE * BR >= 2**31:
        o_r = o_r.to(tl.int64)
    p_r = table + i_row * STRIDE + (o_r[:, None] * STRIDE + o_d[None, :])  # [BR, BD]
    if D % BD == 0:
        return tl.load(p_r, mask=m_r[:, None], other=0.0)
    return tl.load(p_r, mask=m_r[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def gather_rows(table, o_r, m_r, i_d, STRIDE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Rows ``o_r`` (int64), columns ``i_d ..`` of a table, 0 where ``m_r`` is not: ``[BR, BD]``."""
    o_d = i_d + tl.arange(0, BD)
    p_r = table + (o_r[:, None] * STRIDE + o_d[None, :])  # [BR, BD]
    return tl.load(p_r, mask=m_r[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def scores(
    left, right, b_l, i_l, n_l, i_r, n_r,
    STRIDE_L: tl.constexpr, STRIDE_R: tl.constexpr, D: tl.constexpr, BL: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Dot products of rows ``i_l ..`` of one table and ``i_r ..`` of another: float32 ``[BL, BR]``.

    ``b_l`` holds the left rows where one chunk covers the width; else they are read chunk by chunk.
    """
    b_s = tl.zeros([BL, BR], dtype=tl.float32)
    if D <= BD:
        b_r = load_rows(right, i_r, n_r, 0, STRIDE_R, D, BR, BD)  # [BR, BD]
        b_s = dot(b_l, tl.trans(b_r), b_s, PRECISION)
    else:
        for i_d in range(0, D, BD):
            b_c = load_rows(left, i_l, n_l, i_d, STRIDE_L, D, BL, BD)  # [BL, BD]
            b_r = load_rows(right, i_r, n_r, i_d, STRIDE_R, D, BR, BD)  # [BR, BD]
            b_s = dot(b_c, tl.trans(b_r), b_s, PRECISION)
    return b_s


@triton.jit
def narrowed(b_w, dtype: tl.constexpr):
    """Weights as a product takes them; float16 stops at its largest number, a NaN stays one."""
    if dtype == tl.float16:
        b_w = tl.clamp(b_w, -_HALF_MAX, _HALF_MAX, propagate_nan=tl.PropagateNan.ALL)
    return b_w.to(dtype)
