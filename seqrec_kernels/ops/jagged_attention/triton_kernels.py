"""Jagged attention on the GPU: no score leaves the chip, and no row is padded.

**Forward.** Every program takes a block of queries, of however many sequences, and one head. It
runs over the blocks of keys that they see, with a running maximum and sum of 2^score for each
query, and adds what the values give under them (the online softmax of FlashAttention). For the
backward is kept the base-2 log-sum-exp, ``[M, heads]``.

**Backward** (``triton_backward.py``). Scores are formed again tile by tile, twice: a *row kernel*
sums the gradient of the queries, a *column kernel* those of the keys and values. No program writes
where another does, and each sums in the order of its loop.

**Memory.** Outputs, gradients, and two numbers a query and head.

The online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao
et al., "FlashAttention" (NeurIPS 2022), algorithm 1.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.jagged_attention.problem import Problem, saved_shapes
from seqrec_kernels.ops.jagged_attention.triton_backward import backward
from seqrec_kernels.ops.jagged_attention.triton_spans import (
    Operands,
    factors,
    head_rows,
    reach,
    spans,
    store_rows,
    tokens_in_use,
)
from seqrec_kernels.tiles import dot
from seqrec_kernels.triton_loader import unsupported

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]


@triton.jit(do_not_specialize=["M", "N", "B", "steps", "dropped"])
def attention_fwd_kernel(
    q, k, v, offsets, seed, out, lse, M, N, B, steps, dropped, kept_scale, scale2,
    H: tl.constexpr, D: tl.constexpr, SQ: tl.constexpr, SK: tl.constexpr, SV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0) * BM
    i_h = tl.program_id(1)
    o_m = i_m + tl.arange(0, BM)
    used = tokens_in_use(offsets, N, B)
    b_first, b_end = spans(offsets, o_m, M, used, B, steps, CAUSAL, LAST, False)
    i_first, i_end = reach(b_first, b_end, used, BN)
    b_q = head_rows(q, i_m, M, i_h, SQ, D, BM, BD)  # [BM, BD]
    b_max = tl.full([BM], -float("inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_out = tl.zeros([BM, BD], dtype=tl.float32)
    for i_n in range(i_first, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = head_rows(k, i_n, used, i_h, SK, D, BN, BD)  # [BN, BD]
        b_s = dot(b_q, tl.trans(b_k), tl.zeros([BM, BN], dtype=tl.float32), PRECISION) * scale2
        m_seen = (o_n[None, :] >= b_first[:, None]) & (o_n[None, :] < b_end[:, None])
        b_s = tl.where(m_seen, b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_base = tl.where(b_new == -float("inf"), 0.0, b_new)  # so far nothing was seen
        b_p = tl.exp2(b_s - b_base[:, None])
        b_old = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_old + tl.sum(b_p, 1)
        b_max = b_new
        if DROPS:
            b_p *= factors(seed, o_m, i_h, i_n, dropped, kept_scale, H, BM, BN)
        b_v = head_rows(v, i_n, used, i_h, SV, D, BN, BD)  # [BN, BD]
        b_out = dot(b_p.to(b_v.dtype), b_v, b_out * b_old[:, None], PRECISION)
    m_any = b_first < b_end
    b_sum = tl.where(m_any, b_sum, 1.0)
    b_out = b_out / b_sum[:, None]
    b_lse = tl.where(m_any, b_max, 0.0) + tl.log2(b_sum)
    store_rows(out, i_m, M, b_out, i_h, H * D, D, BM, BD)
    tl.store(lse + o_m * H + i_h, b_lse, mask=o_m < M)


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The output; saved are the base-2 log-sum-exps, ``[M, heads]``."""
    x = Operands.of(problem)
    M, H = x.q.shape[0], problem.heads
    out = torch.empty(M, problem.width, dtype=x.q.dtype, device=x.q.device)
    lse = torch.empty(M, H, dtype=torch.float32, device=x.q.device)
    tile = x.tile("forward")
    with tiles.on_device(x.q):
        if M > 0:
            attention_fwd_kernel[(triton.cdiv(M, tile.rows), H)](
                x.q, x.k, x.v, x.offsets, x.seed, out, lse, *x.lengths, x.dropped, x.kept_scale,
                x.scale2, **x.constants(tile),
            )  # fmt: skip
    return out, [lse] if any(needs) else []
