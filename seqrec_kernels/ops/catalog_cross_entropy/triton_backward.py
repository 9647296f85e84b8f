"""Backward of the catalogue cross-entropy on the GPU: a row kernel and a column kernel.

The mathematics is in ``triton_kernels.py``. Each kernel ends in its own *finish*: where one program
has seen everything its block needs, it takes the labels' share off, scales and stores the gradient;
where the loop was cut in parts, every part stores its sum and a small kernel adds them in order and
finishes the same way.
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
from seqrec_kernels.ops.catalog_cross_entropy.labels import Labels, Problem
from seqrec_kernels.ops.catalog_cross_entropy.triton_operands import Operands, dense_labels, shift
from seqrec_kernels.tiles import dot, gather_rows, load_rows, scores

__all__ = ["backward"]

_SEGMENT = tl.constexpr(16)  # targets added to a gradient of items at a time


class Upstream(NamedTuple):
    """What the loss hands back to each row, and the targets sorted by item."""

    factor: Tensor  # [M], weight of the row's probabilities, divided by unit
    unit: Tensor  # [], largest magnitude of the factors for float16, else 1
    pull: Tensor  # [M, T], weight of the row's targets
    order: Tensor  # int64 [M T], places in pull by ascending item; empty slots last
    sorted: Tensor  # int64 [M T], the items in that order; V in empty slots
    boost: float  # exponent by which probabilities are scaled on their way into a product

    @classmethod
    def of(cls, grad: Tensor, problem: Problem, labels: Labels) -> Upstream:
        rows = grad.to(torch.float32) * labels.scale
        factor, pull = rows * labels.mass, rows[:, None] * labels.weights
        unit, boost = factor.new_ones(()), 0.0
        if problem.queries.dtype == torch.float16:
            largest = factor.abs().amax()
            unit, boost = torch.where(largest > 0, largest, 1), 15.0
        V = problem.items.shape[0]
        targets = problem.targets.reshape(-1)
        in_range = (targets >= problem.first_item) & (targets < V)
        # stable, so that equal items keep the order of the rows and every run adds alike
        items, order = torch.where(in_range, targets, V).sort(stable=True)
        return cls(factor / unit, unit, pull.contiguous(), order, items, boost)


# ---- gradient of the queries ---------------------------------------------------------------------


@triton.jit
def _finish_dq(
    b_acc, e, columns, factor, pull, unit, dq, i_m, i_d, M, first, T, scale, gain,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Scales a block of sums, takes the targets' rows off and stores the gradient."""
    o_m = i_m + tl.arange(0, BM)
    o_d = i_d + tl.arange(0, BO)
    m_m = o_m < M
    b_f = tl.load(factor + o_m, mask=m_m, other=0.0) * tl.load(unit) * gain  # [BM]
    b_dq = b_acc * b_f[:, None]
    for i_t in range(T):
        b_v = tl.load(columns + o_m * T + i_t, mask=m_m, other=0) + first  # [BM]
        b_w = tl.load(pull + o_m * T + i_t, mask=m_m, other=0.0)  # [BM]
        b_e = gather_rows(e, b_v, m_m & (b_w != 0), i_d, STRIDE, D, BO)  # [BM, BO]
        b_dq -= b_w[:, None] * b_e.to(tl.float32)
    p_dq = dq + o_m[:, None] * D + o_d[None, :]
    tl.store(p_dq, b_dq * scale, mask=m_m[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["M", "V", "first", "size", "T"])
def dq_bwd_kernel(
    q, e, bias, lse, columns, factor, pull, unit, dq, M, V, first, size, T, scale2, scale,
    boost, gain,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    BO: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    i_s = tl.program_id(1).to(tl.int64)
    i_o = tl.program_id(2) * BO
    o_m = i_m + tl.arange(0, BM)
    b_q = load_rows(q, i_m, M, 0, D, D, BM, BD)  # [BM, BD]
    b_lse = tl.load(lse + o_m, mask=o_m < M, other=float("inf")) - boost  # [BM]
    b_acc = tl.zeros([BM, BO], dtype=tl.float32)
    i_first = first + i_s * size * BV
    for i_v in range(i_first, tl.minimum(i_first + size * BV, V), BV):
        b_s = scores(q, e, b_q, i_m, M, i_v, V, D, STRIDE, D, BM, BV, BD, PRECISION)
        b_x = b_s * scale2 + shift(bias, i_v, V, BV, HAS_BIAS)[None, :]
        b_p = tl.exp2(b_x - b_lse[:, None])
        b_e = load_rows(e, i_v, V, i_o, STRIDE, D, BV, BO)  # [BV, BO]
        b_acc = dot(b_p.to(b_e.dtype), b_e, b_acc, PRECISION)
    if PARTS:
        o_d = i_o + tl.arange(0, BO)
        p_part = dq + (i_s * M + o_m[:, None]) * D + o_d[None, :]
        tl.store(p_part, b_acc, mask=(o_m < M)[:, None] & (o_d < D)[None, :])
    else:
        _finish_dq(
            b_acc, e, columns, factor, pull, unit, dq,
            i_m, i_o, M, first, T, scale, gain, STRIDE, D, BM, BO,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "first", "parts", "T"])
def dq_finish_kernel(
    part, e, columns, factor, pull, unit, dq, M, first, parts, T, scale, gain,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    i_o = tl.program_id(1) * BO
    o_m = i_m + tl.arange(0, BM)
    o_d = i_o + tl.arange(0, BO)
    m_part = (o_m < M)[:, None] & (o_d < D)[None, :]
    b_acc = tl.zeros([BM, BO], dtype=tl.float32)
    for i_s in range(parts):
        i_row = tl.cast(i_s, tl.int64) * M
        b_acc += tl.load(part + (i_row + o_m[:, None]) * D + o_d[None, :], mask=m_part, other=0.0)
    _finish_dq(
        b_acc, e, columns, factor, pull, unit, dq,
        i_m, i_o, M, first, T, scale, gain, STRIDE, D, BM, BO,
    )  # fmt: skip


def dq_bwd(x: Operands, labels: Labels, up: Upstream, lse: Tensor) -> Tensor:
    """Gradient of the queries, ``[M, D]`` in their dtype."""
    tile = x.tile("rows")
    (M, D), V, T = x.q.shape, x.e.shape[0], labels.columns.shape[1]
    blocks, outs = triton.cdiv(M, tile.rows), triton.cdiv(D, tile.out)
    parts, size = tiles.splits(blocks * outs, triton.cdiv(V - x.first, tile.items))
    dq = torch.empty_like(x.q)
    part = dq if parts == 1 else torch.empty(parts, M, D, dtype=torch.float32, device=dq.device)
    rows = (labels.columns, up.factor, up.pull, up.unit)
    gain = 2.0**-up.boost
    dq_bwd_kernel[(blocks, parts, outs)](
        x.q, x.e, x.bias, lse, *rows, part,
        M, V, x.first, size, T, x.scale2, x.scale, up.boost, gain,
        BM=tile.rows, BV=tile.items, BO=tile.out, PARTS=parts > 1, **x.constants(tile),
    )  # fmt: skip
    if parts > 1:
        dq_finish_kernel[(triton.cdiv(M, 16), outs)](
            part, x.e, *rows, dq, M, x.first, parts, T, x.scale, gain,
            STRIDE=x.e.stride(0), D=D, BM=16, BO=tile.out,
            num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return dq


# ---- gradients of the items and their bias -------------------------------------------------------


@triton.jit
def _finish_de(
    b_acc, b_sum, q, pull, order, sorted, bounds, unit, de, db, i_block, i_v, i_d, V, T, scale,
    gain,
    D: tl.constexpr, BV: tl.constexpr, BO: tl.constexpr, NEED_ITEMS: tl.constexpr,
    NEED_BIAS: tl.constexpr,
):  # fmt: skip
    """Scales a block of sums, takes the rows that aim at these items off and stores gradients."""
    o_v = i_v + tl.arange(0, BV)
    o_d = i_d + tl.arange(0, BO)
    b_gain = tl.load(unit) * gain
    b_acc *= b_gain
    b_sum *= b_gain
    i_end = tl.load(bounds + i_block + 1)
    for i_n in range(tl.load(bounds + i_block), i_end, _SEGMENT):
        o_n = i_n + tl.arange(0, _SEGMENT)
        m_n = o_n < i_end
        b_v = tl.load(sorted + o_n, mask=m_n, other=-1)  # [N]
        b_place = tl.load(order + o_n, mask=m_n, other=0)  # [N]
        b_w = tl.load(pull + b_place, mask=m_n, other=0.0)  # [N]
        m_hit = o_v[:, None] == b_v[None, :]  # [BV, N]
        if NEED_BIAS:
            b_sum -= tl.sum(tl.where(m_hit, b_w[None, :], 0.0), 1)
        if NEED_ITEMS:
            b_q = gather_rows(q, b_place // T, m_n & (b_w != 0), i_d, D, D, BO)  # [N, BO]
            b_r = -b_w[:, None] * b_q.to(tl.float32)
            # the segment sum as a product: its order is the hardware's, the same every time
            b_acc = dot(m_hit.to(tl.float32), b_r, b_acc, "tf32x3")
    if NEED_ITEMS:
        p_de = de + o_v[:, None] * D + o_d[None, :]
        tl.store(p_de, b_acc * scale, mask=(o_v < V)[:, None] & (o_d < D)[None, :])
    if NEED_BIAS:
        if i_d == 0:
            tl.store(db + o_v, b_sum, mask=o_v < V)


@triton.jit(do_not_specialize=["M", "V", "first", "size", "T"])
def de_bwd_kernel(
    q, e, bias, lse, factor, pull, order, sorted, bounds, unit, de, db, M, V, first, size, T,
    scale2, scale, boost, gain,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    BO: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
    NEED_ITEMS: tl.constexpr, NEED_BIAS: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0).to(tl.int64)
    i_s = tl.program_id(1).to(tl.int64)
    i_o = tl.program_id(2) * BO
    i_v = first + i_block * BV
    o_v = i_v + tl.arange(0, BV)
    b_e = load_rows(e, i_v, V, 0, STRIDE, D, BV, BD)  # [BV, BD]
    b_shift = shift(bias, i_v, V, BV, HAS_BIAS)  # [BV]
    b_acc = tl.zeros([BV, BO], dtype=tl.float32)
    b_sum = tl.zeros([BV], dtype=tl.float32)
    i_first = i_s * size * BM
    for i_m in range(i_first, tl.minimum(i_first + size * BM, M), BM):
        o_m = i_m + tl.arange(0, BM)
        # past the last row: exp2(-inf) is 0 whatever the bias
        b_lse = tl.load(lse + o_m, mask=o_m < M, other=float("inf")) - boost  # [BM]
        b_f = tl.load(factor + o_m, mask=o_m < M, other=0.0)  # [BM]
        # the tile lies the other way round, items by rows, as the product below wants it
        b_s = scores(e, q, b_e, i_v, V, i_m, M, STRIDE, D, D, BV, BM, BD, PRECISION)
        b_x = b_s * scale2 + b_shift[:, None]
        b_p = tl.exp2(b_x - b_lse[None, :]) * b_f[None, :]
        if NEED_BIAS:
            b_sum += tl.sum(b_p, 1)
        if NEED_ITEMS:
            b_q = load_rows(q, i_m, M, i_o, D, D, BM, BO)  # [BM, BO]
            b_acc = dot(b_p.to(b_q.dtype), b_q, b_acc, PRECISION)
    if PARTS:
        o_d = i_o + tl.arange(0, BO)
        o_part = i_s * (V - first) + (o_v - first)
        if NEED_ITEMS:
            p_part = de + o_part[:, None] * D + o_d[None, :]
            tl.store(p_part, b_acc, mask=(o_v < V)[:, None] & (o_d < D)[None, :])
        if NEED_BIAS:
            if i_o == 0:
                tl.store(db + o_part, b_sum, mask=o_v < V)
    else:
        _finish_de(
            b_acc, b_sum, q, pull, order, sorted, bounds, unit, de, db,
            i_block, i_v, i_o, V, T, scale, gain, D, BV, BO, NEED_ITEMS, NEED_BIAS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["V", "first", "parts", "T"])
def de_finish_kernel(
    part, bias_part, q, pull, order, sorted, bounds, unit, de, db, V, first, parts, T, scale,
    gain,
    D: tl.constexpr, BV: tl.constexpr, BO: tl.constexpr, NEED_ITEMS: tl.constexpr,
    NEED_BIAS: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0).to(tl.int64)
    i_o = tl.program_id(1) * BO
    i_v = first + i_block * BV
    o_v = i_v + tl.arange(0, BV)
    o_d = i_o + tl.arange(0, BO)
    m_v = o_v < V
    b_acc = tl.zeros([BV, BO], dtype=tl.float32)
    b_sum = tl.zeros([BV], dtype=tl.float32)
    for i_s in range(parts):
        o_part = tl.cast(i_s, tl.int64) * (V - first) + (o_v - first)
        if NEED_ITEMS:
            p_part = part + o_part[:, None] * D + o_d[None, :]
            b_acc += tl.load(p_part, mask=m_v[:, None] & (o_d < D)[None, :], other=0.0)
        if NEED_BIAS:
            b_sum += tl.load(bias_part + o_part, mask=m_v, other=0.0)
    _finish_de(
        b_acc, b_sum, q, pull, order, sorted, bounds, unit, de, db,
        i_block, i_v, i_o, V, T, scale, gain, D, BV, BO, NEED_ITEMS, NEED_BIAS,
    )  # fmt: skip


def de_bwd(
    x: Operands, up: Upstream, lse: Tensor, T: int, need_items: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the items, ``[V, D]`` in their dtype, and of the bias, ``[V]``."""
    tile = x.tile("columns")
    (M, D), V = x.q.shape, x.e.shape[0]
    blocks = triton.cdiv(V - x.first, tile.items)
    outs = triton.cdiv(D, tile.out) if need_items else 1
    parts, size = tiles.splits(blocks * outs, triton.cdiv(M, tile.rows))
    de = db = part = bias_part = None
    if need_items:
        de = part = torch.empty(V, D, dtype=x.e.dtype, device=lse.device)
        de[: x.first].zero_()
        part = de if parts == 1 else lse.new_empty(parts, V - x.first, D)
    if need_bias:
        db = bias_part = lse.new_empty(V)
        db[: x.first].zero_()
        bias_part = db if parts == 1 else lse.new_empty(parts, V - x.first)
    # where the sorted targets of every block of items begin
    edges = torch.arange(blocks + 1, device=lse.device) * tile.items + x.first
    bounds = torch.searchsorted(up.sorted, edges.clamp_(max=V))
    rows = (up.pull, up.order, up.sorted, bounds, up.unit)
    needs = {"NEED_ITEMS": need_items, "NEED_BIAS": need_bias}
    gain = 2.0**-up.boost
    de_bwd_kernel[(blocks, parts, outs)](
        x.q, x.e, x.bias, lse, up.factor, *rows, part, bias_part,
        M, V, x.first, size, T, x.scale2, x.scale, up.boost, gain,
        BM=tile.rows, BV=tile.items, BO=tile.out, PARTS=parts > 1, **needs, **x.constants(tile),
    )  # fmt: skip
    if parts > 1:
        de_finish_kernel[(blocks, outs)](
            part, bias_part, x.q, *rows, de, db,
            V, x.first, parts, T, x.scale, gain, D=D, BV=tile.items, BO=tile.out, **needs,
            num_warps=tile.warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return de, db


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, items, item_bias, each in its input's dtype."""
    need_queries, need_items, need_bias = needs
    inputs = [problem.queries, problem.items, problem.item_bias]
    if problem.queries.shape[0] == 0:
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in wanted]
    x, (lse,) = Operands.of(problem), saved
    labels = dense_labels(problem)
    up = Upstream.of(grad, problem, labels)
    found: list[Tensor | None] = [None, None, None]
    with tiles.on_device(x.q):
        if need_queries:
            found[0] = dq_bwd(x, labels, up, lse)
        if need_items or need_bias:
            T = labels.columns.shape[1]
            found[1], found[2] = de_bwd(x, up, lse, T, need_items, need_bias)
    return [gradient for gradient in found if gradient is not None]
