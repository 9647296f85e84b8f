"""The gradients of jagged attention on the GPU; formulas in ``problem.py``.

With ``s`` scores as exponents of 2 and ``L`` the log-sum-exps of the forward, ``p = 2^(s - L)``.
The ``m_i`` come first, as ``g_i . o_i``; the other two kernels need them for every tile.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.jagged_attention.problem import Problem, gradients
from seqrec_kernels.ops.jagged_attention.triton_spans import (
    Operands,
    factors,
    head_rows,
    reach,
    spans,
    store_rows,
    tokens_in_use,
)
from seqrec_kernels.tiles import dot, narrowed

__all__ = ["backward"]


@triton.jit(do_not_specialize=["M"])
def attention_mean_bwd_kernel(
    grad, out, mean, M, H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0) * BM
    i_h = tl.program_id(1)
    o_m = i_m + tl.arange(0, BM)
    b_g = head_rows(grad, i_m, M, i_h, H * D, D, BM, BD).to(tl.float32)  # [BM, BD]
    b_o = head_rows(out, i_m, M, i_h, H * D, D, BM, BD).to(tl.float32)  # [BM, BD]
    tl.store(mean + o_m * H + i_h, tl.sum(b_g * b_o, 1), mask=o_m < M)


def mean_bwd(grad: Tensor, out: Tensor, heads: int) -> Tensor:
    """The dot product of each head's gradient and output: float32 ``[M, heads]``."""
    M, width = out.shape
    D, rows = width // heads, 64
    mean = torch.empty(M, heads, dtype=torch.float32, device=out.device)
    attention_mean_bwd_kernel[(triton.cdiv(M, rows), heads)](
        grad, out, mean, M, H=heads, D=D, BM=rows, BD=max(16, triton.next_power_of_2(D)),
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return mean


@triton.jit
def _slopes(
    b_q, b_k, b_v, b_g, b_l, b_m, m_seen, b_f, scale2,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Of a tile the weights after dropout and the gradients of the scores: ``[BM, BN]`` each."""
    b_s = dot(b_q, tl.trans(b_k), tl.zeros([BM, BN], dtype=tl.float32), PRECISION) * scale2
    b_c = dot(b_g, tl.trans(b_v), tl.zeros([BM, BN], dtype=tl.float32), PRECISION)
    b_p = tl.where(m_seen, tl.exp2(b_s - b_l[:, None]), 0.0)
    if DROPS:
        b_c *= b_f
    # what is not seen may be NaN
    b_ds = tl.where(m_seen, b_p * (b_c - b_m[:, None]), 0.0)
    if DROPS:
        b_p *= b_f
    return b_p, b_ds


@triton.jit(do_not_specialize=["M", "N", "B", "steps", "dropped"])
def attention_dq_bwd_kernel(
    q, k, v, grad, lse, mean, offsets, seed, dq, M, N, B, steps, dropped, kept_scale, scale2, scale,
    H: tl.constexpr, D: tl.constexpr, SQ: tl.constexpr, SK: tl.constexpr, SV: tl.constexpr,
    SDQ: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, LAST: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0) * BM
    i_h = tl.program_id(1)
    o_m = i_m + tl.arange(0, BM)
    used = tokens_in_use(offsets, N, B)
    b_first, b_end = spans(offsets, o_m, M, used, B, steps, CAUSAL, LAST, False)
    i_first, i_end = reach(b_first, b_end, used, BN)
    b_q = head_rows(q, i_m, M, i_h, SQ, D, BM, BD)  # [BM, BD]
    b_g = head_rows(grad, i_m, M, i_h, H * D, D, BM, BD)  # [BM, BD]
    b_l = tl.load(lse + o_m * H + i_h, mask=o_m < M, other=0.0)
    b_m = tl.load(mean + o_m * H + i_h, mask=o_m < M, other=0.0)
    b_dq = tl.zeros([BM, BD], dtype=tl.float32)
    for i_n in range(i_first, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = head_rows(k, i_n, used, i_h, SK, D, BN, BD)  # [BN, BD]
        b_v = head_rows(v, i_n, used, i_h, SV, D, BN, BD)  # [BN, BD]
        m_seen = (o_n[None, :] >= b_first[:, None]) & (o_n[None, :] < b_end[:, None])
        b_f = 1.0
        if DROPS:
            b_f = factors(seed, o_m, i_h, i_n, dropped, kept_scale, H, BM, BN)
        _, b_ds = _slopes(
            b_q, b_k, b_v, b_g, b_l, b_m, m_seen, b_f, scale2, BM, BN, PRECISION, DROPS
        )
        b_dq = dot(narrowed(b_ds, b_k.dtype), b_k, b_dq, PRECISION)
    store_rows(dq, i_m, M, b_dq * scale, i_h, SDQ, D, BM, BD)


@triton.jit(do_not_specialize=["M", "N", "B", "steps", "dropped"])
def attention_dkv_bwd_kernel(
    q, k, v, grad, lse, mean, offsets, seed, dk, dv, M, N, B, steps, dropped, kept_scale, scale2,
    scale,
    H: tl.constexpr, D: tl.constexpr, SQ: tl.constexpr, SK: tl.constexpr, SV: tl.constexpr,
    SDK: tl.constexpr, SDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, LAST: tl.constexpr, DROPS: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0) * BN
    i_h = tl.program_id(1)
    o_n = i_n + tl.arange(0, BN)
    used = tokens_in_use(offsets, N, B)
    rows = M if LAST else used  # queries in use
    b_first, b_end = spans(offsets, o_n, used, rows, B, steps, CAUSAL, LAST, True)
    i_first, i_end = reach(b_first, b_end, rows, BM)
    b_k = head_rows(k, i_n, used, i_h, SK, D, BN, BD)  # [BN, BD]
    b_v = head_rows(v, i_n, used, i_h, SV, D, BN, BD)  # [BN, BD]
    b_dk = tl.zeros([BN, BD], dtype=tl.float32)
    b_dv = tl.zeros([BN, BD], dtype=tl.float32)
    for i_m in range(i_first, i_end, BM):
        o_m = i_m + tl.arange(0, BM)
        b_q = head_rows(q, i_m, rows, i_h, SQ, D, BM, BD)  # [BM, BD]
        b_g = head_rows(grad, i_m, rows, i_h, H * D, D, BM, BD)  # [BM, BD]
        if LAST:  # the query of an empty sequence may hold anything
            b_own = tl.load(offsets + o_m, mask=o_m < M, other=0)
            m_own = tl.load(offsets + o_m + 1, mask=o_m < M, other=0) > b_own
            b_q = tl.where(m_own[:, None], b_q, 0.0)
            b_g = tl.where(m_own[:, None], b_g, 0.0)
        b_l = tl.load(lse + o_m * H + i_h, mask=o_m < rows, other=0.0)
        b_m = tl.load(mean + o_m * H + i_h, mask=o_m < rows, other=0.0)
        m_seen = (o_m[:, None] >= b_first[None, :]) & (o_m[:, None] < b_end[None, :])
        b_f = 1.0
        if DROPS:
            b_f = factors(seed, o_m, i_h, i_n, dropped, kept_scale, H, BM, BN)
        b_p, b_ds = _slopes(
            b_q, b_k, b_v, b_g, b_l, b_m, m_seen, b_f, scale2, BM, BN, PRECISION, DROPS
        )
        if DV:
            b_dv = dot(tl.trans(b_p.to(b_g.dtype)), b_g, b_dv, PRECISION)
        if DK:
            b_dk = dot(tl.trans(narrowed(b_ds, b_q.dtype)), b_q, b_dk, PRECISION)
    if DK:
        store_rows(dk, i_n, N, b_dk * scale, i_h, SDK, D, BN, BD)
    if DV:
        store_rows(dv, i_n, N, b_dv, i_h, SDV, D, BN, BD)


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, keys, values, each in its input's dtype."""
    x = Operands.of(problem)
    M, N, H = x.q.shape[0], x.k.shape[0], problem.heads
    out, lse = saved
    grad = tiles.dense(grad)
    found, (dq, dk, dv) = gradients(
        problem, needs, lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device)
    )
    with tiles.on_device(x.q):
        if M > 0:
            mean = mean_bwd(grad, out, H)
        else:
            mean = lse
        given = (x.q, x.k, x.v, grad, lse, mean, x.offsets, x.seed)
        numbers = (*x.lengths, x.dropped, x.kept_scale, x.scale2, x.scale)
        if dq is not None and M > 0:
            tile = x.tile("rows")
            attention_dq_bwd_kernel[(triton.cdiv(M, tile.rows), H)](
                *given, dq, *numbers, SDQ=dq.stride(0), **x.constants(tile)
            )
        if (dk is not None or dv is not None) and N > 0:
            tile = x.tile("columns")
            attention_dkv_bwd_kernel[(triton.cdiv(N, tile.items), H)](
                *given, dk, dv, *numbers, SDK=0 if dk is None else dk.stride(0),
                SDV=0 if dv is None else dv.stride(0), DK=dk is not None, DV=dv is not None,
                **x.constants(tile),
            )  # fmt: skip
    return found
