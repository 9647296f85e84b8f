"""Backward of the contrastive losses on the GPU: a row kernel and a column kernel.

The mathematics is in ``problem.py``. With f_r the upstream gradient of a row over the
temperature, w_rk the weight of a pair and v_r, v_k the own weights (``pair_weights``),

    da_r = f_r (sum_k w_rk n_k + sum_e w_re n_e - pull_r p_r + (v_r / |a_r|) a_r),
    dn_k = sum_r f_r w_rk a_r + (v_k / |n_k|) n_k,    dp_r = -f_r pull_r a_r.

Mixed negatives are constants in "official" form: there the column kernel forms none. Each kernel
ends in its own *finish*: after the loop, or, where that was cut in parts, in a small kernel that
adds the parts in order.

**float16.** Weights can lie far below the smallest float16. They are scaled by 2^10 on their way
into the tensor cores (a shift of the exponent, free), which leaves room for weights up to 64, and f
by its largest magnitude; both are taken back in float32.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.contrast.problem import Problem
from seqrec_kernels.ops.contrast.triton_pairs import (
    Operands,
    inverse,
    load_vector,
    mix_ratio,
    pair_weights,
)
from seqrec_kernels.tiles import dot, load_rows, narrowed, scores

__all__ = ["backward"]


class Upstream(NamedTuple):
    """What the loss hands back to each row."""

    factor: Tensor  # [R], over the temperature, divided by unit
    unit: Tensor  # [], largest magnitude of the factors for float16, else 1
    boost: float  # exponent by which weights are scaled on their way into a product

    @classmethod
    def of(cls, grad: Tensor, problem: Problem, scale: float) -> Upstream:
        R = problem.anchors.shape[0]
        scale = scale / R if problem.reduction == "mean" else scale
        factor = (grad.to(torch.float32) * scale).expand(R)
        unit, boost = factor.new_ones(()), 0.0
        if problem.anchors.dtype == torch.float16:
            largest = factor.abs().amax()
            unit, boost = torch.where(largest > 0, largest, 1), 10.0
        return cls((factor / unit).contiguous(), unit, boost)


# ---- gradient of the anchors ---------------------------------------------------------------------


@triton.jit
def _finish_da(
    b_acc, b_own, a, p, a_norm, factor, unit, pull, da, i_r, i_d, R, gain,
    D: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, MIX: tl.constexpr,
):  # fmt: skip
    """Adds the positive's and the anchor's own share to a block of sums and stores the gradient."""
    o_r = i_r + tl.arange(0, BR)
    o_d = i_d + tl.arange(0, BO)
    b_f = load_vector(factor, i_r, R, BR) * tl.load(unit)  # [BR]
    b_pull = load_vector(pull, i_r, R, BR)  # [BR]
    b_p = load_rows(p, i_r, R, i_d, D, D, BR, BO).to(tl.float32)  # [BR, BO]
    b_da = b_acc * gain - b_pull[:, None] * b_p
    if MIX:
        b_own *= inverse(load_vector(a_norm, i_r, R, BR)) * gain
        b_a = load_rows(a, i_r, R, i_d, D, D, BR, BO).to(tl.float32)  # [BR, BO]
        b_da += b_own[:, None] * b_a
    p_da = da + o_r[:, None] * D + o_d[None, :]
    tl.store(p_da, b_da * b_f[:, None], mask=(o_r < R)[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["R", "K", "E", "size", "size_e"])
def da_bwd_kernel(
    a, p, n, e, a_ids, n_ids, a_norm, n_norm, seed, lse, pull, factor, unit, da, own,
    R, K, E, size, size_e, boost, gain, sharp, lift, shift, scale2, low, span, log_mu,
    D: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr,
    PRECISION: tl.constexpr, FOCAL: tl.constexpr, HAS_IDS: tl.constexpr, HAS_NOISE: tl.constexpr,
    MIX: tl.constexpr, DRAWN: tl.constexpr, THROUGH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64) * BR
    i_s = tl.program_id(1).to(tl.int64)
    i_o = tl.program_id(2) * BO
    o_r = i_r + tl.arange(0, BR)
    b_q = load_rows(a, i_r, R, 0, D, D, BR, BD)  # [BR, BD]
    b_lse = tl.load(lse + o_r, mask=o_r < R, other=float("inf"))[:, None] - boost  # [BR, 1]
    b_id = load_vector(a_ids, i_r, R, BR)[:, None] if HAS_IDS else 0
    b_a = load_vector(a_norm, i_r, R, BR)[:, None] if MIX else 0.0
    b_acc = tl.zeros([BR, BO], dtype=tl.float32)
    b_own = tl.zeros([BR], dtype=tl.float32)
    i_first = i_s * size * BK
    for i_k in range(i_first, tl.minimum(i_first + size * BK, K), BK):
        o_k = i_k + tl.arange(0, BK)
        m_kept = (o_k < K)[None, :]
        if HAS_IDS:
            m_kept = m_kept & (b_id != load_vector(n_ids, i_k, K, BK)[None, :])
        b_b = load_vector(n_norm, i_k, K, BK)[None, :] if MIX else 0.0
        b_s = scores(a, n, b_q, i_r, R, i_k, K, D, D, D, BR, BK, BD, PRECISION)
        b_l = mix_ratio(seed, o_r[:, None], o_k[None, :], low, span, DRAWN)
        b_w, b_v = pair_weights(
            b_s, b_lse, m_kept, b_a, b_b, b_l, sharp, lift, shift, scale2, log_mu,
            FOCAL, MIX, THROUGH, True,
        )  # fmt: skip
        if MIX:
            b_own += tl.sum(b_v, 1)
        b_n = load_rows(n, i_k, K, i_o, D, D, BK, BO)  # [BK, BO]
        b_acc = dot(narrowed(b_w, b_n.dtype), b_n, b_acc, PRECISION)
    if HAS_NOISE:
        i_first = i_s * size_e * BK
        for i_e in range(i_first, tl.minimum(i_first + size_e * BK, E), BK):
            m_kept = (i_e + tl.arange(0, BK) < E)[None, :]
            b_s = scores(a, e, b_q, i_r, R, i_e, E, D, D, D, BR, BK, BD, PRECISION)
            b_w, _ = pair_weights(
                b_s, b_lse, m_kept, 0.0, 0.0, 0.0, sharp, lift, shift, scale2, log_mu,
                FOCAL, False, False, True,
            )  # fmt: skip
            b_e = load_rows(e, i_e, E, i_o, D, D, BK, BO)  # [BK, BO]
            b_acc = dot(narrowed(b_w, b_e.dtype), b_e, b_acc, PRECISION)
    if PARTS:
        o_d = i_o + tl.arange(0, BO)
        p_part = da + (i_s * R + o_r[:, None]) * D + o_d[None, :]
        tl.store(p_part, b_acc, mask=(o_r < R)[:, None] & (o_d < D)[None, :])
        if MIX:
            if i_o == 0:
                tl.store(own + i_s * R + o_r, b_own, mask=o_r < R)
    else:
        _finish_da(
            b_acc, b_own, a, p, a_norm, factor, unit, pull, da, i_r, i_o, R, gain, D, BR, BO, MIX
        )


@triton.jit
def add_parts(
    part, own, i_row, i_d, n_rows, parts,
    D: tl.constexpr, B: tl.constexpr, BO: tl.constexpr, HAS_OWN: tl.constexpr,
):  # fmt: skip
    """The parts of a block of sums, ``[B, BO]``, and of its own weights, ``[B]``, in order."""
    o_v = i_row + tl.arange(0, B)
    o_d = i_d + tl.arange(0, BO)
    m_v = o_v < n_rows
    b_acc = tl.zeros([B, BO], dtype=tl.float32)
    b_own = tl.zeros([B], dtype=tl.float32)
    for i_s in range(parts):
        o_part = tl.cast(i_s, tl.int64) * n_rows + o_v
        p_part = part + o_part[:, None] * D + o_d[None, :]
        b_acc += tl.load(p_part, mask=m_v[:, None] & (o_d < D)[None, :], other=0.0)
        if HAS_OWN:
            b_own += tl.load(own + o_part, mask=m_v, other=0.0)
    return b_acc, b_own


@triton.jit(do_not_specialize=["R", "parts"])
def da_finish_kernel(
    part, own, a, p, a_norm, factor, unit, pull, da, R, parts, gain,
    D: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, MIX: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64) * BR
    i_o = tl.program_id(1) * BO
    b_acc, b_own = add_parts(part, own, i_r, i_o, R, parts, D, BR, BO, MIX)
    _finish_da(
        b_acc, b_own, a, p, a_norm, factor, unit, pull, da, i_r, i_o, R, gain, D, BR, BO, MIX
    )


def da_bwd(x: Operands, up: Upstream, lse: Tensor, pull: Tensor, norms: list[Tensor]) -> Tensor:
    """Gradient of the anchors, ``[R, D]`` in their dtype."""
    tile = x.tile("mixed rows" if x.through or x.drawn else "rows")
    (R, D), K, E = x.a.shape, x.n.shape[0], x.e.shape[0]
    blocks, outs = triton.cdiv(R, tile.rows), triton.cdiv(D, tile.out)
    parts, size, size_e = x.cut(blocks * outs, tile)
    da = torch.empty_like(x.a)
    part = da if parts == 1 else lse.new_empty(parts, R, D)
    own = lse.new_empty(parts, R) if parts > 1 and x.mix else None
    a_norm, n_norm = norms or (None, None)
    gain = 2.0**-up.boost
    da_bwd_kernel[(blocks, parts, outs)](
        x.a, x.p, x.n, x.e, x.a_ids, x.n_ids, a_norm, n_norm, x.seed, lse, pull,
        up.factor, up.unit, part, own, R, K, E, size, size_e, up.boost, gain, *x.numbers,
        BO=tile.out, HAS_NOISE=E > 0, MIX=x.mix, DRAWN=x.drawn, THROUGH=x.through,
        PARTS=parts > 1, **x.constants(tile),
    )  # fmt: skip
    if parts > 1:
        da_finish_kernel[(triton.cdiv(R, 16), outs)](
            part, own, x.a, x.p, a_norm, up.factor, up.unit, pull, da, R, parts, gain,
            D=D, BR=16, BO=tile.out, MIX=x.mix, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return da


# ---- gradients of the negatives and the noise ----------------------------------------------------


@triton.jit
def _finish_dn(
    b_acc, b_own, n, n_norm, unit, dn, i_k, i_d, K, gain,
    D: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr, THROUGH: tl.constexpr,
):  # fmt: skip
    """Adds a negative's own share to a block of sums and stores the gradient."""
    o_k = i_k + tl.arange(0, BK)
    o_d = i_d + tl.arange(0, BO)
    if THROUGH:
        b_own *= inverse(load_vector(n_norm, i_k, K, BK))
        b_n = load_rows(n, i_k, K, i_d, D, D, BK, BO).to(tl.float32)  # [BK, BO]
        b_acc += b_own[:, None] * b_n
    p_dn = dn + o_k[:, None] * D + o_d[None, :]
    b_dn = b_acc * (tl.load(unit) * gain)
    tl.store(p_dn, b_dn, mask=(o_k < K)[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["R", "K", "size"])
def dn_bwd_kernel(
    a, n, a_ids, n_ids, a_norm, n_norm, seed, lse, factor, unit, dn, own, R, K, size, boost, gain,
    sharp, lift, shift, scale2, low, span, log_mu,
    D: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr,
    PRECISION: tl.constexpr, FOCAL: tl.constexpr, HAS_IDS: tl.constexpr, DRAWN: tl.constexpr,
    THROUGH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i_k = tl.program_id(0).to(tl.int64) * BK
    i_s = tl.program_id(1).to(tl.int64)
    i_o = tl.program_id(2) * BO
    o_k = i_k + tl.arange(0, BK)
    b_q = load_rows(n, i_k, K, 0, D, D, BK, BD)  # [BK, BD]
    b_id = load_vector(n_ids, i_k, K, BK)[:, None] if HAS_IDS else 0
    b_b = load_vector(n_norm, i_k, K, BK)[:, None] if THROUGH else 0.0
    b_acc = tl.zeros([BK, BO], dtype=tl.float32)
    b_own = tl.zeros([BK], dtype=tl.float32)
    i_first = i_s * size * BR
    for i_r in range(i_first, tl.minimum(i_first + size * BR, R), BR):
        o_r = i_r + tl.arange(0, BR)
        m_kept = (o_r < R)[None, :]
        if HAS_IDS:
            m_kept = m_kept & (b_id != load_vector(a_ids, i_r, R, BR)[None, :])
        b_lse = tl.load(lse + o_r, mask=o_r < R, other=float("inf"))[None, :] - boost  # [1, BR]
        b_f = load_vector(factor, i_r, R, BR)[None, :]  # [1, BR]
        b_a = load_vector(a_norm, i_r, R, BR)[None, :] if THROUGH else 0.0
        # the tile lies the other way round, negatives by anchors, as the product below wants it
        b_s = scores(n, a, b_q, i_k, K, i_r, R, D, D, D, BK, BR, BD, PRECISION)
        b_l = mix_ratio(seed, o_r[None, :], o_k[:, None], low, span, DRAWN and THROUGH)
        b_w, b_v = pair_weights(
            b_s, b_lse, m_kept, b_a, b_b, b_l, sharp, lift, shift, scale2, log_mu,
            FOCAL, THROUGH, THROUGH, False,
        )  # fmt: skip
        if THROUGH:
            b_own += tl.sum(b_v * b_f, 1)
        b_r = load_rows(a, i_r, R, i_o, D, D, BR, BO)  # [BR, BO]
        b_acc = dot(narrowed(b_w * b_f, b_r.dtype), b_r, b_acc, PRECISION)
    if PARTS:
        o_d = i_o + tl.arange(0, BO)
        p_part = dn + (i_s * K + o_k[:, None]) * D + o_d[None, :]
        tl.store(p_part, b_acc, mask=(o_k < K)[:, None] & (o_d < D)[None, :])
        if THROUGH:
            if i_o == 0:
                tl.store(own + i_s * K + o_k, b_own, mask=o_k < K)
    else:
        _finish_dn(b_acc, b_own, n, n_norm, unit, dn, i_k, i_o, K, gain, D, BK, BO, THROUGH)


@triton.jit(do_not_specialize=["K", "parts"])
def dn_finish_kernel(
    part, own, n, n_norm, unit, dn, K, parts, gain,
    D: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr, THROUGH: tl.constexpr,
):  # fmt: skip
    i_k = tl.program_id(0).to(tl.int64) * BK
    i_o = tl.program_id(1) * BO
    b_acc, b_own = add_parts(part, own, i_k, i_o, K, parts, D, BK, BO, THROUGH)
    _finish_dn(b_acc, b_own, n, n_norm, unit, dn, i_k, i_o, K, gain, D, BK, BO, THROUGH)


def dn_bwd(x: Operands, up: Upstream, lse: Tensor, norms: list[Tensor]) -> Tensor:
    """Gradient of the negatives, ``[K, D]`` in their dtype."""
    tile = x.tile("mixed columns" if x.through else "columns")
    R, (K, D) = x.a.shape[0], x.n.shape
    dn = torch.empty_like(x.n)
    if K == 0:
        return dn
    blocks, outs = triton.cdiv(K, tile.items), triton.cdiv(D, tile.out)
    parts, size = tiles.splits(blocks * outs, triton.cdiv(R, tile.rows))
    part = dn if parts == 1 else lse.new_empty(parts, K, D)
    own = lse.new_empty(parts, K) if parts > 1 and x.through else None
    a_norm, n_norm = norms or (None, None)
    gain = 2.0**-up.boost
    dn_bwd_kernel[(blocks, parts, outs)](
        x.a, x.n, x.a_ids, x.n_ids, a_norm, n_norm, x.seed, lse, up.factor, up.unit, part, own,
        R, K, size, up.boost, gain, *x.numbers,
        BO=tile.out, DRAWN=x.drawn, THROUGH=x.through, PARTS=parts > 1, **x.constants(tile),
    )  # fmt: skip
    if parts > 1:
        dn_finish_kernel[(triton.cdiv(K, 16), outs)](
            part, own, x.n, n_norm, up.unit, dn, K, parts, gain,
            D=D, BK=16, BO=tile.out, THROUGH=x.through,
            num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return dn


# ---- gradient of the positives -------------------------------------------------------------------


@triton.jit(do_not_specialize=["R"])
def dp_bwd_kernel(
    a, factor, unit, pull, dp, R, D: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr
):
    i_r = tl.program_id(0).to(tl.int64) * BR
    i_o = tl.program_id(1) * BO
    o_r = i_r + tl.arange(0, BR)
    o_d = i_o + tl.arange(0, BO)
    b_f = load_vector(factor, i_r, R, BR) * tl.load(unit) * load_vector(pull, i_r, R, BR)  # [BR]
    b_a = load_rows(a, i_r, R, i_o, D, D, BR, BO).to(tl.float32)  # [BR, BO]
    p_dp = dp + o_r[:, None] * D + o_d[None, :]
    tl.store(p_dp, -b_f[:, None] * b_a, mask=(o_r < R)[:, None] & (o_d < D)[None, :])


def dp_bwd(x: Operands, up: Upstream, pull: Tensor) -> Tensor:
    """Gradient of the positives, ``[R, D]`` in their dtype."""
    R, D = x.p.shape
    rows, out = 16, min(128, max(16, triton.next_power_of_2(D)))
    dp = torch.empty_like(x.p)
    dp_bwd_kernel[(triton.cdiv(R, rows), triton.cdiv(D, out))](
        x.a, up.factor, up.unit, pull, dp, R,
        D=D, BR=rows, BO=out, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return dp


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order anchors, positives, negatives, noise, as their inputs."""
    inputs = [problem.anchors, problem.positives, problem.negatives, problem.noise]
    if problem.anchors.shape[0] == 0:
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in wanted]
    x, (lse, pull, *norms) = Operands.of(problem), saved
    up = Upstream.of(grad, problem, x.scale)
    need_anchors, need_positives, need_negatives, need_noise = needs
    found: list[Tensor] = []
    with tiles.on_device(x.a):
        if need_anchors:
            found.append(da_bwd(x, up, lse, pull, norms))
        if need_positives:
            found.append(dp_bwd(x, up, pull))
        if need_negatives:
            found.append(dn_bwd(x, up, lse, norms))
        if need_noise:  # a noise row is a negative that is never left out or mixed
            noise = x._replace(n=x.e, a_ids=None, n_ids=None, drawn=False, through=False)
            found.append(dn_bwd(noise, up, lse, []))
    return found
