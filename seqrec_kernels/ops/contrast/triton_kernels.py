"""The contrastive losses on the GPU: no matrix of pairs leaves the chip, no mixed negative exists.

**Forward.** Every program takes a block of anchors and a part of the negatives and noise rows, and
keeps a running maximum and sum of 2^logit over the pairs it keeps and their mixed negatives
(``triton_pairs.py``); a pair that is left out is -inf before it meets the maximum. The parts are
put together in one fixed order with the positive: with x its logit, L the log-sum-exp of the rest,

    loss_r = log(1 + exp(L - x)),

which is exact near 0 and 0 where nothing was kept. For the backward are kept, each ``[R]``, the
log-sum-exp with the positive and the derivative by the positive's dot product, and where negatives
are mixed the norms of the rows.

**Backward** (``triton_backward.py``). Pairs are formed again tile by tile, twice: a *row kernel*
sums the gradient of the anchors, a *column kernel* that of the negatives and of the noise. No
program writes where another does; where blocks are too few to fill the chip, partial sums go into a
workspace and are added in order.

**Memory.** Vectors over R and K, the gradients, and workspaces of at most a few hundred blocks
(``tiles.splits``).
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.contrast.problem import Problem
from seqrec_kernels.ops.contrast.triton_backward import backward
from seqrec_kernels.ops.contrast.triton_pairs import (
    LN2,
    LOG2E,
    Operands,
    focal,
    load_vector,
    mix_ratio,
    pair_logits,
)
from seqrec_kernels.tiles import load_rows, scores
from seqrec_kernels.triton_loader import unsupported

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]


@triton.jit(do_not_specialize=["N"])
def norm_fwd_kernel(table, norm, N, D: tl.constexpr, B: tl.constexpr, BD: tl.constexpr):
    i_n = tl.program_id(0).to(tl.int64) * B
    o_n = i_n + tl.arange(0, B)
    b_top = tl.zeros([B], dtype=tl.float32)
    for i_d in tl.static_range(0, D, BD):
        b_x = load_rows(table, i_n, N, i_d, D, D, B, BD).to(tl.float32)  # [B, BD]
        b_top = tl.maximum(b_top, tl.max(tl.abs(b_x), 1))
    b_unit = tl.where(b_top > 0, b_top, 1.0)  # squares of tiny numbers would vanish
    b_sum = tl.zeros([B], dtype=tl.float32)
    for i_d in tl.static_range(0, D, BD):
        b_x = load_rows(table, i_n, N, i_d, D, D, B, BD).to(tl.float32) / b_unit[:, None]
        b_sum += tl.sum(b_x * b_x, 1)
    tl.store(norm + o_n, b_unit * tl.sqrt(b_sum), mask=o_n < N)


def norm_fwd(table: Tensor) -> Tensor:
    """The norm of every row: float32 ``[N]``."""
    (N, D), rows = table.shape, 16
    norm = torch.empty(N, dtype=torch.float32, device=table.device)
    norm_fwd_kernel[(triton.cdiv(N, rows),)](
        table, norm, N,
        D=D, B=rows, BD=min(128, max(16, triton.next_power_of_2(D))),
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return norm


@triton.jit
def _add_logits(b_max, b_sum, b_x, b_y, MIX: tl.constexpr):
    """The running maximum and sum of rows, with a tile's base-2 logits added."""
    b_top = tl.max(tl.maximum(b_x, b_y) if MIX else b_x, 1)
    b_new = tl.maximum(b_max, b_top)
    b_base = tl.where(b_new == -float("inf"), 0.0, b_new)  # so far nothing was kept
    b_add = tl.exp2(b_x - b_base[:, None])
    if MIX:
        b_add += tl.exp2(b_y - b_base[:, None])
    return b_new, b_sum * tl.exp2(b_max - b_base) + tl.sum(b_add, 1)


@triton.jit(do_not_specialize=["R", "K", "E", "size", "size_e"])
def pair_fwd_kernel(
    a, n, e, a_ids, n_ids, a_norm, n_norm, seed, part, R, K, E, size, size_e,
    sharp, lift, shift, scale2, low, span, log_mu,
    D: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, FOCAL: tl.constexpr, HAS_IDS: tl.constexpr, HAS_NOISE: tl.constexpr,
    MIX: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64) * BR
    i_s = tl.program_id(1).to(tl.int64)
    o_r = i_r + tl.arange(0, BR)
    b_q = load_rows(a, i_r, R, 0, D, D, BR, BD)  # [BR, BD]
    b_id = load_vector(a_ids, i_r, R, BR)[:, None] if HAS_IDS else 0
    b_a = load_vector(a_norm, i_r, R, BR)[:, None] if MIX else 0.0
    b_max = tl.full([BR], -float("inf"), dtype=tl.float32)
    b_sum = tl.zeros([BR], dtype=tl.float32)
    i_first = i_s * size * BK
    for i_k in range(i_first, tl.minimum(i_first + size * BK, K), BK):
        o_k = i_k + tl.arange(0, BK)
        m_kept = (o_k < K)[None, :]
        if HAS_IDS:
            m_kept = m_kept & (b_id != load_vector(n_ids, i_k, K, BK)[None, :])
        b_b = load_vector(n_norm, i_k, K, BK)[None, :] if MIX else 0.0
        b_s = scores(a, n, b_q, i_r, R, i_k, K, D, D, D, BR, BK, BD, PRECISION)
        b_l = mix_ratio(seed, o_r[:, None], o_k[None, :], low, span, DRAWN)
        b_x, b_y = pair_logits(
            b_s, m_kept, b_a, b_b, b_l, sharp, lift, shift, scale2, log_mu, FOCAL, MIX
        )
        b_max, b_sum = _add_logits(b_max, b_sum, b_x, b_y, MIX)
    if HAS_NOISE:
        i_first = i_s * size_e * BK
        for i_e in range(i_first, tl.minimum(i_first + size_e * BK, E), BK):
            m_kept = (i_e + tl.arange(0, BK) < E)[None, :]
            b_s = scores(a, e, b_q, i_r, R, i_e, E, D, D, D, BR, BK, BD, PRECISION)
            b_x, b_y = pair_logits(
                b_s, m_kept, 0.0, 0.0, 0.0, sharp, lift, shift, scale2, log_mu, FOCAL, False
            )
            b_max, b_sum = _add_logits(b_max, b_sum, b_x, b_y, False)
    tl.store(part + i_s * R + o_r, b_max + tl.log2(b_sum), mask=o_r < R)


def pair_fwd(x: Operands, norms: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Base-2 log-sum-exp of every row over each part of negatives and noise: ``[parts, R]``."""
    tile = x.tile("pairs")
    R, K, E = x.a.shape[0], x.n.shape[0], x.e.shape[0]
    blocks = triton.cdiv(R, tile.rows)
    parts, size, size_e = x.cut(blocks, tile)
    part = torch.empty(parts, R, dtype=torch.float32, device=x.a.device)
    pair_fwd_kernel[(blocks, parts)](
        x.a, x.n, x.e, x.a_ids, x.n_ids, *norms, x.seed, part, R, K, E, size, size_e, *x.numbers,
        HAS_NOISE=E > 0, MIX=x.mix, DRAWN=x.drawn, **x.constants(tile),
    )  # fmt: skip
    return part


@triton.jit(do_not_specialize=["R", "parts"])
def combine_fwd_kernel(
    a, p, part, loss, lse, pull, R, parts, sharp, scale2,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64) * BR
    o_r = i_r + tl.arange(0, BR)
    m_r = o_r < R
    b_max = tl.full([BR], -float("inf"), dtype=tl.float32)
    for i_s in range(parts):
        b_max = tl.maximum(b_max, tl.load(part + i_s * R + o_r, mask=m_r, other=0.0))
    b_base = tl.where(b_max == -float("inf"), 0.0, b_max)
    b_sum = tl.zeros([BR], dtype=tl.float32)
    for i_s in range(parts):
        b_sum += tl.exp2(tl.load(part + i_s * R + o_r, mask=m_r, other=0.0) - b_base)

    b_s = tl.zeros([BR], dtype=tl.float32)
    for i_d in tl.static_range(0, D, BD):
        b_a = load_rows(a, i_r, R, i_d, D, D, BR, BD).to(tl.float32)  # [BR, BD]
        b_p = load_rows(p, i_r, R, i_d, D, D, BR, BD).to(tl.float32)  # [BR, BD]
        b_s += tl.sum(b_a * b_p, 1)
    b_phi, b_outer, b_inner = focal(b_s, sharp, 0.0, FOCAL)
    b_x = b_phi * scale2
    # log(1 + e), e = 2^-|gap| at most 1; what rounding took from 1 + e the quotient gives back
    b_rest = b_base + tl.log2(b_sum)
    b_gap = b_rest - b_x
    b_e = tl.exp2(-tl.abs(b_gap))
    b_one = 1.0 + b_e
    b_off = tl.where(b_one == 1.0, 1.0, b_one - 1.0)
    b_log = tl.where(b_one == 1.0, b_e, tl.log(b_one) * (b_e / b_off))
    b_loss = tl.where(b_gap > 0, b_gap * LN2, 0.0) + b_log
    # a NaN is not above 0, and stays one in the logarithm
    b_share = tl.where(b_gap > 0, 1.0, b_e) / b_one
    tl.store(loss + o_r, b_loss, mask=m_r)
    # from the larger of both, not from the loss: beside huge logits it is that one to the last bit
    tl.store(lse + o_r, tl.where(b_gap > 0, b_rest, b_x) + b_log * LOG2E, mask=m_r)
    tl.store(pull + o_r, b_share * (b_outer + b_inner), mask=m_r)


def combine_fwd(x: Operands, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row the loss, the base-2 log-sum-exp and the pull of its positive: each ``[R]``.

    The pull is the derivative of the loss by the positive's dot product, without its sign and the
    temperature.
    """
    R, D = x.a.shape
    loss, lse, pull = (part.new_empty(R) for _ in range(3))
    rows = 16
    sharp, _, _, scale2, *_ = x.numbers
    combine_fwd_kernel[(triton.cdiv(R, rows),)](
        x.a, x.p, part, loss, lse, pull, R, part.shape[0], sharp, scale2,
        D=D, BR=rows, BD=min(128, max(16, triton.next_power_of_2(D))), FOCAL=x.focal,
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return loss, lse, pull


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss, and what the backward needs where a gradient is wanted.

    Args:
        needs: whether anchors, positives, negatives and noise want a gradient.
    """
    if problem.anchors.shape[0] == 0:
        shape = (0,) if problem.reduction == "none" else ()
        loss = torch.zeros(shape, dtype=torch.float32, device=problem.anchors.device)
        return loss, [loss.new_zeros(shape) for shape in saved_shapes(problem, needs)]
    x = Operands.of(problem)
    norms: list[Tensor] = []
    with tiles.on_device(x.a):
        if x.mix:
            norms = [norm_fwd(x.a), norm_fwd(x.n)]
        a_norm, n_norm = norms if x.mix else (None, None)
        losses, lse, pull = combine_fwd(x, pair_fwd(x, (a_norm, n_norm)))
    loss = losses
    if problem.reduction != "none":
        loss = losses.mean() if problem.reduction == "mean" else losses.sum()
    return loss, [lse, pull, *norms] if any(needs) else []


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32."""
    if not any(needs):
        return []
    R, K = problem.anchors.shape[0], problem.negatives.shape[0]
    return [(R,), (R,), *([(R,), (K,)] if problem.mix_weight > 0 and K > 0 else [])]
