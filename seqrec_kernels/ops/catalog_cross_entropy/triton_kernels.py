"""Catalogue cross-entropy on the GPU: no logit leaves the chip.

**Forward.** With ``x_mv = q_m . e_v / t + b_v``, every program takes a block of rows and a part of
the catalogue and keeps a running maximum and sum,

    s <- s 2^(max - max') + sum_v 2^(x_v log2 e - max'),    LSE = (max + log2 s) ln 2,

so a batch of a few rows still fills the chip. The parts' LSE are put together in one fixed order,
together with the labels' share ``sum_t w_mt x_mt``, a few gathered dot products. Only the LSE is
kept for the backward.

**Backward** (``triton_backward.py``). Probabilities ``p_mv = exp(x_mv - LSE_m)`` are formed again
tile by tile, twice: a *row kernel* sums ``f_m p_mv e_v`` into dq, and a *column kernel* sums
``f_m p_mv q_m`` into de and ``f_m p_mv`` into db, f the upstream gradient times the row's weights.
No program writes where another does, so there are no atomics; where blocks are too few to fill the
chip, partial sums go into a workspace and are added in order. Labels take ``w_mt e_t`` off dq by a
gather, and off de by a segment sum over the targets sorted by item.

**float16.** ``p`` can lie far below the smallest float16. It is scaled by 2^15 on its way into the
tensor cores (a shift of its exponent, free) and f by its largest magnitude; both are taken back in
float32.

**Memory.** LSE parts and workspaces of at most a few hundred blocks (``tiles.splits``), vectors
over rows and targets, and the gradients.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.catalog_cross_entropy.labels import Labels, Problem
from seqrec_kernels.ops.catalog_cross_entropy.triton_backward import backward
from seqrec_kernels.ops.catalog_cross_entropy.triton_operands import (
    LN2,
    Operands,
    dense_labels,
    shift,
)
from seqrec_kernels.tiles import gather_rows, load_rows, scores
from seqrec_kernels.triton_loader import unsupported

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

# ---- forward -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["M", "V", "first", "size"])
def lse_fwd_kernel(
    q, e, bias, part, M, V, first, size, scale2,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    i_s = tl.program_id(1).to(tl.int64)
    b_q = load_rows(q, i_m, M, 0, D, D, BM, BD)  # [BM, BD]
    b_max = tl.full([BM], -float("inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    i_first = first + i_s * size * BV
    for i_v in range(i_first, tl.minimum(i_first + size * BV, V), BV):
        b_s = scores(q, e, b_q, i_m, M, i_v, V, D, STRIDE, D, BM, BV, BD, PRECISION)
        b_x = b_s * scale2 + shift(bias, i_v, V, BV, HAS_BIAS)[None, :]
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_x - b_new[:, None]), 1)
        b_max = b_new
    o_m = i_m + tl.arange(0, BM)
    tl.store(part + i_s * M + o_m, b_max + tl.log2(b_sum), mask=o_m < M)


def lse_fwd(x: Operands) -> Tensor:
    """Base-2 log-sum-exp of every row over each part of the catalogue: ``[parts, M]``."""
    tile = x.tile("scores")
    M, V = x.q.shape[0], x.e.shape[0]
    blocks, count = triton.cdiv(M, tile.rows), triton.cdiv(V - x.first, tile.items)
    parts, size = tiles.splits(blocks, count)
    part = torch.empty(parts, M, dtype=torch.float32, device=x.q.device)
    lse_fwd_kernel[(blocks, parts)](
        x.q, x.e, x.bias, part, M, V, x.first, size, x.scale2,
        BM=tile.rows, BV=tile.items, **x.constants(tile),
    )  # fmt: skip
    return part


@triton.jit(do_not_specialize=["M", "first", "parts", "T"])
def combine_fwd_kernel(
    q, e, bias, columns, weights, part, lse, pull, M, first, parts, T, scale,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = i_m + tl.arange(0, BM)
    m_m = o_m < M
    b_max = tl.full([BM], -float("inf"), dtype=tl.float32)
    for i_s in range(parts):
        b_max = tl.maximum(b_max, tl.load(part + i_s * M + o_m, mask=m_m, other=0.0))
    b_sum = tl.zeros([BM], dtype=tl.float32)
    for i_s in range(parts):
        b_sum += tl.exp2(tl.load(part + i_s * M + o_m, mask=m_m, other=0.0) - b_max)
    tl.store(lse + o_m, b_max + tl.log2(b_sum), mask=m_m)

    b_pull = tl.zeros([BM], dtype=tl.float32)
    for i_t in range(T):
        b_v = tl.load(columns + o_m * T + i_t, mask=m_m, other=0) + first  # [BM]
        b_w = tl.load(weights + o_m * T + i_t, mask=m_m, other=0.0)  # [BM]
        b_x = tl.zeros([BM], dtype=tl.float32)
        for i_d in tl.static_range(0, D, BD):
            b_q = load_rows(q, i_m, M, i_d, D, D, BM, BD).to(tl.float32)  # [BM, BD]
            b_e = gather_rows(e, b_v, m_m, i_d, STRIDE, D, BD).to(tl.float32)  # [BM, BD]
            b_x += tl.sum(b_q * b_e, 1)
        b_x *= scale
        if HAS_BIAS:
            b_x += tl.load(bias + b_v, mask=m_m, other=0.0)
        # a weight of 0 beside a logit of -inf (an item taken out) adds nothing
        b_pull += tl.where(b_w == 0, 0.0, b_w * b_x)
    tl.store(pull + o_m, b_pull, mask=m_m)


def combine_fwd(x: Operands, labels: Labels, part: Tensor) -> tuple[Tensor, Tensor]:
    """Base-2 log-sum-exp of every row, and ``sum_t w_mt x_mt``: both ``[M]``."""
    (M, D), T = x.q.shape, labels.columns.shape[1]
    lse, pull = part.new_empty(M), part.new_empty(M)
    rows = 16
    combine_fwd_kernel[(triton.cdiv(M, rows),)](
        x.q, x.e, x.bias, labels.columns, labels.weights, part, lse, pull,
        M, x.first, part.shape[0], T, x.scale,
        STRIDE=x.e.stride(0), D=D, BM=rows, BD=min(128, max(16, triton.next_power_of_2(D))),
        HAS_BIAS=x.bias is not None, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return lse, pull


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss, and the base-2 LSE of the rows where a gradient is wanted.

    Args:
        needs: whether queries, items and item_bias want a gradient.
    """
    labels = dense_labels(problem)
    rows = problem.queries.shape[0]
    if rows == 0:
        shape = () if problem.reduction != "none" else (0,)
        loss = torch.zeros(shape, dtype=torch.float32, device=problem.queries.device)
        return loss, [loss.new_zeros(shape) for shape in saved_shapes(problem, needs)]
    x = Operands.of(problem)
    with tiles.on_device(x.q):
        lse, pull = combine_fwd(x, labels, lse_fwd(x))
    losses = torch.where(labels.scale > 0, labels.mass * (lse * LN2.value) - pull, 0)
    losses = torch.where(labels.wrong, torch.nan, losses)
    loss = losses if problem.reduction == "none" else (labels.scale * losses).sum()
    return loss, [lse] if any(needs) else []


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32."""
    return [tuple(problem.queries.shape[:1])] if any(needs) else []
