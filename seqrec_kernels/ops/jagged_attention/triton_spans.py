"""What jagged attention gives its triton kernels: operands, who sees whom, and what is dropped.

A tile takes rows as they stand in the batch, whatever sequences they are of: with 9 items in a
sequence, a tile of 64 queries holds 7 of them and meets little more than its own 64 keys. So the
grid follows from the number of rows alone, and no length is ever asked for. Of a row on one side
its kernel knows the interval of rows it meets on the other (``spans``), which is a comparison for
each pair; between the least and the greatest of a tile runs its loop.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import philox, tiles
from seqrec_kernels.ops.jagged_attention.problem import Problem, operands
from seqrec_kernels.tiles import load_rows

_STREAM = tl.constexpr(philox.STREAM_ATTENTION)


class Operands(NamedTuple):
    """What every kernel is given: tensors as kernels read them, and the numbers beside them."""

    q: Tensor  # [M, heads * D]
    k: Tensor  # [N, heads * D]
    v: Tensor  # [N, heads * D]
    offsets: Tensor  # [B + 1]
    seed: Tensor  # []
    dropped: int
    kept_scale: float
    scale: float
    precision: str
    problem: Problem

    @classmethod
    def of(cls, problem: Problem) -> Operands:
        # this setting follows torch.set_float32_matmul_precision and its successors alike
        fast = torch.backends.cuda.matmul.fp32_precision == "tf32"
        q, k, v = (tiles.dense_rows(t) for t in operands(problem))
        return cls(
            q,
            k,
            v,
            problem.offsets.contiguous(),
            problem.seed.detach(),
            problem.dropped,
            problem.kept_scale,
            problem.scale,
            "tf32" if fast else "tf32x3",
            problem,
        )

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """M, N, B and the steps of a search among B."""
        sequences = self.offsets.shape[0] - 1
        return self.q.shape[0], self.k.shape[0], sequences, sequences.bit_length()

    @property
    def scale2(self) -> float:
        """Of scores as exponents of 2."""
        return self.scale * math.log2(math.e)

    def tile(self, kind: str) -> tiles.Tile:
        return tiles.attention_tile(kind, self.q.dtype, self.problem.size, self.problem.last)

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Compile-time arguments and launch options shared by the kernels."""
        return {
            "H": self.problem.heads,
            "D": self.problem.size,
            "SQ": self.q.stride(0),
            "SK": self.k.stride(0),
            "SV": self.v.stride(0),
            "BM": tile.rows,
            "BN": tile.items,
            "BD": max(16, triton.next_power_of_2(self.problem.size)),
            "PRECISION": self.precision,
            "CAUSAL": self.problem.causal,
            "LAST": self.problem.last,
            "DROPS": self.dropped > 0,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        }


@triton.jit
def tokens_in_use(offsets, N, B):
    """Rows before the end of the last sequence."""
    return tl.minimum(tl.maximum(tl.load(offsets + B), 0), N).to(tl.int32)


@triton.jit
def _sequence(offsets, o_n, B, steps):
    """The sequence of each row, B behind the last: how many of them end before it or at it."""
    b_low = o_n * 0
    b_high = b_low + B
    for _ in range(steps):
        b_mid = (b_low + b_high) // 2
        m_open = b_low < b_high
        m_past = m_open & (tl.load(offsets + b_mid + 1, mask=m_open, other=0) <= o_n)
        b_low = tl.where(m_past, b_mid + 1, b_low)
        b_high = tl.where(m_open & ~m_past, b_mid, b_high)
    return b_low


@triton.jit
def spans(
    offsets, o_r, rows, others, B, steps,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, OF_KEYS: tl.constexpr,
):  # fmt: skip
    """The interval of the other side's rows that each row meets, empty where it ends first.

    Of offsets that nobody has read nothing is expected: intervals stay within ``0 .. others``.
    """
    m_r = o_r < rows
    if LAST and not OF_KEYS:
        b_first = tl.load(offsets + o_r, mask=m_r, other=0)
        b_end = tl.load(offsets + o_r + 1, mask=m_r, other=0)
    else:
        b_own = _sequence(offsets, o_r, B, steps)
        m_r = m_r & (b_own < B)
        if LAST:
            b_first = b_own
            b_end = b_own + 1
        else:
            b_first = tl.load(offsets + b_own, mask=m_r, other=0)
            b_end = tl.load(offsets + b_own + 1, mask=m_r, other=0)
            if CAUSAL and OF_KEYS:
                b_first = tl.maximum(b_first, o_r)
            elif CAUSAL:
                b_end = tl.minimum(b_end, o_r + 1)
    # int64 until here: offsets may hold anything
    b_first = tl.minimum(tl.maximum(b_first, 0), others).to(tl.int32)
    b_end = tl.minimum(tl.maximum(b_end, 0), others).to(tl.int32)
    return b_first, tl.where(m_r, b_end, 0)


@triton.jit
def reach(b_first, b_end, others, B: tl.constexpr):
    """From where to where a loop in steps of B meets every interval."""
    m_any = b_first < b_end
    i_first = tl.min(tl.where(m_any, b_first, others))
    return i_first // B * B, tl.max(tl.where(m_any, b_end, 0))


@triton.jit
def _at(table, i_row, i_h, STRIDE: tl.constexpr, D: tl.constexpr):
    """Head ``i_h`` of row ``i_row``; what lies before it may be more than 2^31 numbers."""
    return table + (tl.full([], 0, dtype=tl.int64) + i_row) * STRIDE + i_h * D


@triton.jit
def head_rows(
    table, i_row, n_rows, i_h,
    STRIDE: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Head ``i_h`` of rows ``i_row ..`` of a table, 0 outside it: ``[BR, BD]``."""
    return load_rows(_at(table, i_row, i_h, STRIDE, D), 0, n_rows - i_row, 0, STRIDE, D, BR, BD)


@triton.jit
def store_rows(
    table, i_row, n_rows, b_x, i_h,
    STRIDE: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A block into head ``i_h`` of rows ``i_row ..`` of a table, as far as there are any."""
    o_r = tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    p_x = _at(table, i_row, i_h, STRIDE, D) + o_r[:, None] * STRIDE + o_d[None, :]
    m_x = (i_row + o_r < n_rows)[:, None] & (o_d < D)[None, :]
    tl.store(p_x, b_x.to(table.dtype.element_ty), mask=m_x)


@triton.jit
def factors(
    seed, o_m, i_h, i_n, dropped, kept_scale,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What the weights of queries ``o_m`` and keys ``i_n ..`` are multiplied with: ``[BM, BN]``.

    A counter serves eight neighbouring keys; ``i_n`` is a multiple of 8.
    """
    o_g = i_n // 8 + tl.arange(0, BN // 8)
    b_c0 = (o_m * H + i_h).to(tl.uint32)[:, None]
    b_0, b_1, b_2, b_3 = tl.philox(tl.load(seed), b_c0, o_g.to(tl.uint32)[None, :], 0, _STREAM)
    # key = 4 * (word // 2) + 2 * (word % 2) + half, each a dimension of its own
    b_word = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3))
    b_bits = tl.reshape(tl.join(b_word & 0xFFFF, b_word >> 16), (BM, BN))
    return tl.where(b_bits.to(tl.int32) >= dropped, kept_scale, 0.0)
