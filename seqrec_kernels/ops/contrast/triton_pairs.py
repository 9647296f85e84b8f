"""What the triton kernels of the contrastive losses are given, and the arithmetic of one pair.

The formulas stand in ``problem.py``: all that a pair (r, k) adds follows from its dot product and
the norms of its rows. The derivative of a focal logit, with t = tanh(x / f), has two parts,

    d/dx x (t + m) = (t + m) + (x / f)(1 - t^2) = outer + inner,

and in "paper" form a mixed logit sends the outer part along h and the inner one along dw. So a pair
gives the other side's row a weight, which goes into the tile's product, and its own side's row a
scalar. In "paper" form the margin of a negative shifts its logit instead of lifting the tanh, and a
mixed logit has none.
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
from seqrec_kernels.ops.contrast.problem import LEAST_SQUARE, Problem

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2.0))
_TWO_LOG2E = tl.constexpr(2 * math.log2(math.e))
_LEAST_SQUARE = tl.constexpr(LEAST_SQUARE)
_STREAM_MIX = tl.constexpr(philox.STREAM_MIX)


class Operands(NamedTuple):
    """What every kernel is given: tensors as kernels read them, and the numbers beside them."""

    a: Tensor  # [R, D]
    p: Tensor  # [R, D]
    n: Tensor  # [K, D]
    e: Tensor  # [E, D]
    a_ids: Tensor | None  # [R]
    n_ids: Tensor | None  # [K]
    seed: Tensor  # []
    numbers: tuple[float, ...]  # sharp, lift, shift, scale2, low, span, log_mu
    scale: float  # 1 / temperature
    precision: str
    focal: bool
    mix: bool
    drawn: bool  # each pair draws its own mix ratio
    through: bool  # the tanh of a mixed logit differentiates through its argument

    @classmethod
    def of(cls, problem: Problem) -> Operands:
        x = problem
        focal, paper = x.focal_scale is not None, x.form == "paper"
        mix = x.mix_weight > 0 and x.negatives.shape[0] > 0
        a_ids, n_ids = (
            None if t is None else t.contiguous() for t in (x.anchor_ids, x.negative_ids)
        )
        # this setting follows torch.set_float32_matmul_precision and its successors alike
        fast = torch.backends.cuda.matmul.fp32_precision == "tf32"
        numbers = (
            0.0 if x.focal_scale is None else 1.0 / x.focal_scale,
            0.0 if paper else x.margin,
            x.margin if paper else 0.0,
            LOG2E.value / x.temperature,
            x.mix_low,
            x.mix_high - x.mix_low,
            math.log2(x.mix_weight) if mix else 0.0,
        )
        return cls(
            tiles.dense(x.anchors),
            tiles.dense(x.positives),
            tiles.dense(x.negatives),
            tiles.dense(x.negatives[:0] if x.noise is None else x.noise),
            a_ids,
            n_ids,
            x.seed.detach(),
            numbers,
            1.0 / x.temperature,
            "tf32" if fast else "tf32x3",
            focal,
            mix,
            mix and x.mix_low != x.mix_high,
            mix and focal and paper,
        )

    def tile(self, kind: str) -> tiles.Tile:
        return tiles.pair_tile(kind, self.a.dtype, self.a.shape[1])

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Compile-time arguments and launch options shared by the kernels."""
        return {
            "D": self.a.shape[1],
            "BR": tile.rows,
            "BK": tile.items,
            "BD": tile.depth,
            "PRECISION": self.precision,
            "FOCAL": self.focal,
            "HAS_IDS": self.a_ids is not None,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        }

    def cut(self, blocks: int, tile: tiles.Tile) -> tuple[int, int, int]:
        """Into how many parts the loop over negatives and noise is cut, and the tiles of each."""
        count_n = triton.cdiv(self.n.shape[0], tile.items)
        count_e = triton.cdiv(self.e.shape[0], tile.items)
        parts, _ = tiles.splits(blocks, max(count_n + count_e, 1))
        return parts, triton.cdiv(count_n, parts), triton.cdiv(count_e, parts)


@triton.jit
def load_vector(vector, i_first, n_all, B: tl.constexpr):
    """Entries ``i_first ..`` of a vector, 0 past its end: ``[B]``."""
    o_v = i_first + tl.arange(0, B)
    return tl.load(vector + o_v, mask=o_v < n_all, other=0)


@triton.jit
def inverse(b_norm):
    """1 / x, and 0 for 0."""
    return tl.where(b_norm > 0, 1.0 / tl.where(b_norm > 0, b_norm, 1.0), 0.0)


@triton.jit
def focal(b_x, sharp, lift, FOCAL: tl.constexpr):
    """phi of each x, and the two parts of its derivative."""
    if FOCAL:
        b_v = b_x * sharp
        # e^-2|v| is in (0, 1], so nothing overflows, and 1 - tanh^2 keeps its small values
        b_e = tl.exp2(tl.abs(b_v) * -_TWO_LOG2E)
        b_q = 1.0 / (1.0 + b_e)
        b_t = (1.0 - b_e) * b_q
        b_outer = tl.where(b_v < 0, -b_t, b_t) + lift
        b_inner = b_v * (4.0 * b_e * b_q * b_q)
        return b_x * b_outer, b_outer, b_inner
    else:
        return b_x, 1.0, 0.0


@triton.jit
def mix_ratio(seed, o_r, o_k, low, span, DRAWN: tl.constexpr):
    """The mix ratio of the pairs of rows ``o_r`` and ``o_k``, which broadcast to a tile."""
    if DRAWN:
        b_c0, b_c1 = o_k.to(tl.uint32), o_r.to(tl.uint32)
        b_word, _, _, _ = tl.philox(tl.load(seed), b_c0, b_c1, 0, _STREAM_MIX)
        return low + span * ((b_word >> 8).to(tl.float32) * (2.0**-24))
    else:
        return low


@triton.jit
def mixture(b_s, b_a, b_ia, b_b, b_ib, b_l):
    """u of each pair, the cosine c and 1 / D, which is 0 where the mixed negative is."""
    b_c = tl.clamp(b_s * b_ia * b_ib, -1.0, 1.0)
    b_rest = 1.0 - b_l
    b_square = tl.where(b_ia > 0, b_l * b_l, 0.0) + b_rest * b_rest + 2.0 * b_l * b_rest * b_c
    b_id = tl.rsqrt(tl.maximum(b_square, _LEAST_SQUARE))
    b_id = tl.where(b_square >= _LEAST_SQUARE, b_id, 0.0)
    return (b_l * (b_a * b_b) + b_rest * b_s) * b_id, b_c, b_id


@triton.jit
def pair_logits(
    b_s, m_kept, b_a, b_b, b_l, sharp, lift, shift, scale2, log_mu,
    FOCAL: tl.constexpr, MIX: tl.constexpr,
):  # fmt: skip
    """Base-2 logits of a tile's pairs and of their mixed negatives, -inf where left out."""
    b_phi, _, _ = focal(b_s, sharp, lift, FOCAL)
    b_x = tl.where(m_kept, (b_phi + shift) * scale2, -float("inf"))
    b_y = b_x
    if MIX:
        b_u, _, _ = mixture(b_s, b_a, inverse(b_a), b_b, inverse(b_b), b_l)
        b_phi, _, _ = focal(b_u, sharp, lift, FOCAL)
        b_y = tl.where(m_kept, b_phi * scale2 + log_mu, -float("inf"))
    return b_x, b_y


@triton.jit
def pair_weights(
    b_s, b_lse, m_kept, b_a, b_b, b_l, sharp, lift, shift, scale2, log_mu,
    FOCAL: tl.constexpr, MIX: tl.constexpr, THROUGH: tl.constexpr, OF_ANCHORS: tl.constexpr,
):  # fmt: skip
    """What a tile's pairs give one side's gradient: weights of the other's rows and of its own.

    The own weight lacks the division by the own norm, which the whole row shares. The mask comes
    last and the mixed negatives first: fewer registers live at a time.
    """
    b_w = tl.zeros_like(b_s)
    b_own = b_w
    if MIX:
        b_u, b_c, b_id = mixture(b_s, b_a, inverse(b_a), b_b, inverse(b_b), b_l)
        b_rest = 1.0 - b_l
        b_phi, b_outer, b_inner = focal(b_u, sharp, lift, FOCAL)
        b_p = tl.exp2(b_phi * scale2 + log_mu - b_lse)
        if OF_ANCHORS:
            b_h = b_p * (b_outer if THROUGH else b_outer + b_inner) * b_id
            b_w = b_h * b_rest
            b_own = b_h * b_l
        if THROUGH:
            b_inner *= b_p * b_id
            b_ratio = b_rest * b_id
            b_slope = b_ratio * b_ratio * (b_rest + b_l * b_c)
            b_w += b_inner * b_slope
            b_own += b_inner * ((b_l + b_rest * b_c) - b_slope * b_c)
        b_own = tl.where(m_kept, b_own * (b_b if OF_ANCHORS else b_a), 0.0)
    b_phi, b_outer, b_inner = focal(b_s, sharp, lift, FOCAL)
    b_w += tl.exp2((b_phi + shift) * scale2 - b_lse) * (b_outer + b_inner)
    return tl.where(m_kept, b_w, 0.0), b_own
