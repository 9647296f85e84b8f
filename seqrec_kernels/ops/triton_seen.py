"""Seen items on the GPU, as one bit an item, without the host reading a single offset.

The ranking kernels score neighbouring items 32 and more at a time; which of 32 a row has seen is
one int32 word. A program a row walks its part of the CSR and sets bits. Order and repeats do not
matter to an OR, so the result is the same every time. The words of all rows are 1/32 of a score
matrix in float32; callers take as many rows at a time as ``rows_at_once`` allows.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels.types import SeenItems

WORKSPACE = 128 << 20  # bytes a call may use at a time beside its inputs and outputs


def rows_at_once(bytes_a_row: int, multiple: int) -> int:
    """How many rows fit into the workspace, a multiple of ``multiple`` and at least one of it."""
    return max(1, WORKSPACE // max(1, bytes_a_row) // multiple) * multiple


@triton.jit(do_not_specialize=["U", "N", "V", "first", "G", "i_first"])
def seen_kernel(
    offsets, ids, rows, words, wrong, U, N, V, first, G, i_first, BN: tl.constexpr
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    i_u = i_first + i_b
    if rows is not None:
        i_u = tl.load(rows + i_u)
    m_u = (i_u >= 0) & (i_u < U)
    i_start = tl.load(offsets + i_u, mask=m_u, other=-1)
    i_end = tl.load(offsets + i_u + 1, mask=m_u, other=-1)
    # a row that the CSR sends outside itself has no entries and is told apart
    m_u = (i_start >= 0) & (i_end >= i_start) & (i_end <= N)
    i_end = tl.where(m_u, i_end, i_start)
    b_wrong = tl.where(m_u, 0, 1)
    for i_n in range(i_start, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < i_end
        b_v = tl.load(ids + o_n, mask=m_n, other=0)  # [BN]
        m_in = (b_v >= 0) & (b_v < V)
        b_wrong = tl.maximum(b_wrong, tl.max(tl.where(m_in, 0, 1), 0))
        b_c = b_v - first
        m_in = m_in & m_n & (b_c >= 0)
        b_bit = tl.full([BN], 1, dtype=tl.int32) << (b_c % 32).to(tl.int32)
        tl.atomic_or(words + i_b * G + b_c // 32, b_bit, mask=m_in, sem="relaxed")
    tl.store(wrong + i_b, b_wrong)


def seen_words(
    seen: SeenItems, top: int, end: int, first: int, items: int
) -> tuple[Tensor, Tensor]:
    """Bits of batch rows ``top .. end - 1``, int32 ``[rows, words]``, and the wrong rows, bool.

    Bit c % 32 of word c // 32 is item ``first + c``. A row is wrong where the CSR sends it outside
    itself or names an item outside the table.
    """
    count = triton.cdiv(items - first, 32)
    device = seen.offsets.device
    words = torch.zeros(end - top, count, dtype=torch.int32, device=device)
    wrong = torch.empty(end - top, dtype=torch.int32, device=device)
    offsets, ids = seen.offsets.contiguous(), seen.ids.contiguous()
    rows = None if seen.rows is None else seen.rows.contiguous()
    seen_kernel[(end - top,)](
        offsets, ids, rows, words, wrong,
        offsets.shape[0] - 1, ids.shape[0], items, first, count, top,
        BN=128, num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
    return words, wrong != 0


@triton.jit
def seen_tile(words, o_b, m_b, i_c, G, BM: tl.constexpr, BV: tl.constexpr):
    """Which of the items ``first + i_c ..`` the rows ``o_b`` have seen: bool ``[BM, BV]``."""
    o_g = i_c // 32 + tl.arange(0, BV // 32)
    p_w = words + o_b[:, None] * G + o_g[None, :]  # [BM, BG]
    b_w = tl.load(p_w, mask=m_b[:, None] & (o_g < G)[None, :], other=0)
    b_bits = (b_w[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1  # [BM, BG, 32]
    return tl.reshape(b_bits, [BM, BV]) != 0
