"""Exact ranks on the GPU: integers counted inside the score tile.

The targets' own scores come first, from the product the competitors go through: the items at which
a block of rows aims are gathered as the columns of tiles of the very same shape, and the diagonal
is kept. An element of such a product is added up in the same way wherever it stands in the tile, so
equal item rows score equal bits. Then every program takes a block of rows and a part of the
catalogue, scores tile after tile and counts

    greater += #(score > target),     equal += #(score == target).

What is no candidate becomes NaN, which no comparison counts: columns past the table, the target's
own place (by its id, so whatever bits stand there), and seen items, known by their bits
(``ops/triton_seen.py``); with a ``seen_score`` those get that score instead. Behind a target of NaN
stands nothing and before it every candidate: those are counted in a branch that no other row takes.

Counts are integers, so their order is free. Several targets of a row are rows of their own.

**Memory.** Two int32 counts for each part of the catalogue and target, and the seen bits of at most
``triton_seen.WORKSPACE`` bytes at a time.
"""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops import triton_seen
from seqrec_kernels.ops.triton_seen import seen_tile
from seqrec_kernels.tiles import dot, gather_rows, load_rows, scores
from seqrec_kernels.triton_loader import unsupported
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

# seen items
_ABSENT, _LEFT_OUT, _SCORED = 0, 1, 2


@triton.jit(do_not_specialize=["R", "first", "T", "G"])
def level_kernel(
    q, e, bias, target, words, level, R, first, T, G, seen_score,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = i_m + tl.arange(0, BM)
    b_level = tl.zeros([BM], dtype=tl.float32)
    for i_c in tl.static_range(0, BM, BV):
        o_c = i_c + tl.arange(0, BV)
        b_tc = tl.load(target + i_m + o_c, mask=(o_c < BM) & (i_m + o_c < R), other=-1)  # [BV]
        b_s = tl.zeros([BM, BV], dtype=tl.float32)
        for i_d in range(0, D, BD):
            b_q = load_rows(q, i_m, R, i_d, D, D, BM, BD)  # [BM, BD]
            b_e = gather_rows(e, b_tc, b_tc >= 0, i_d, STRIDE, D, BD)  # [BV, BD]
            b_s = dot(b_q, tl.trans(b_e), b_s, PRECISION)
        m_own = tl.arange(0, BM)[:, None] == o_c[None, :]  # [BM, BV]
        b_level += tl.sum(tl.where(m_own, b_s, 0.0), 1)
    b_t = tl.load(target + o_m, mask=o_m < R, other=-1)  # [BM]
    if HAS_BIAS:
        b_level += tl.load(bias + b_t, mask=b_t >= 0, other=0.0)
    if SEEN == 2:
        b_c = b_t - first
        b_w = tl.load(words + (o_m // T) * G + b_c // 32, mask=b_t >= 0, other=0)  # [BM]
        b_level = tl.where(((b_w >> (b_c % 32).to(tl.int32)) & 1) != 0, seen_score, b_level)
    tl.store(level + o_m, b_level, mask=o_m < R)


@triton.jit(do_not_specialize=["R", "V", "first", "size", "T", "G"])
def count_kernel(
    q, e, bias, target, level, words, part, R, V, first, size, T, G, seen_score,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) * BM
    i_s = tl.program_id(1).to(tl.int64)
    o_m = i_m + tl.arange(0, BM)
    m_m = o_m < R
    b_t = tl.load(target + o_m, mask=m_m, other=-1)  # [BM]
    b_level = tl.load(level + o_m, mask=m_m, other=0.0)  # [BM]
    m_nan = b_level != b_level
    any_nan = tl.max(m_nan.to(tl.int32), 0)
    b_q = load_rows(q, i_m, R, 0, D, D, BM, BD)  # [BM, BD]
    b_greater = tl.zeros([BM], dtype=tl.int32)
    b_equal = tl.zeros([BM], dtype=tl.int32)
    i_first = i_s * size * BV
    for i_c in range(i_first, tl.minimum(i_first + size * BV, V - first), BV):
        i_v = first + i_c
        b_s = scores(q, e, b_q, i_m, R, i_v, V, D, STRIDE, D, BM, BV, BD, PRECISION)
        o_v = i_v + tl.arange(0, BV)
        if HAS_BIAS:
            b_s += tl.load(bias + o_v, mask=o_v < V, other=0.0)[None, :]
        # the target's place in this tile, as a small number
        b_own = tl.minimum(tl.maximum(b_t - i_v, -1), BV).to(tl.int32)  # [BM]
        m_c = (o_v < V)[None, :] & (tl.arange(0, BV)[None, :] != b_own[:, None])  # [BM, BV]
        if SEEN == 1:
            m_c = m_c & ~seen_tile(words, o_m // T, m_m, i_c, G, BM, BV)
        if SEEN == 2:
            b_s = tl.where(seen_tile(words, o_m // T, m_m, i_c, G, BM, BV), seen_score, b_s)
        b_s = tl.where(m_c, b_s, float("nan"))
        b_greater += tl.sum((b_s > b_level[:, None]).to(tl.int32), 1)
        b_equal += tl.sum((b_s == b_level[:, None]).to(tl.int32), 1)
        if any_nan != 0:
            b_greater += tl.sum((m_c & m_nan[:, None]).to(tl.int32), 1)
    p_part = part + 2 * i_s * R + o_m
    tl.store(p_part, b_greater, mask=m_m)
    tl.store(p_part + R, b_equal, mask=m_m)


def _count(
    q: Tensor,
    e: Tensor,
    bias: Tensor | None,
    target: Tensor,
    first: int,
    words: Tensor | None,
    seen_score: float | None,
) -> Tensor:
    """``greater`` and ``equal`` of targets ``[B, T]`` (-1: none), int64 ``[2, B, T]``."""
    (batch, T), D, V = target.shape, q.shape[1], e.shape[0]
    R = batch * T
    if T > 1:
        q = q.repeat_interleave(T, 0, output_size=R)
    tile = tiles.tile("ranks", q.dtype, D, tiles.capability(q))
    blocks = triton.cdiv(R, tile.rows)
    parts, size = tiles.splits(blocks, triton.cdiv(V - first, tile.items))
    level = torch.empty(R, dtype=torch.float32, device=q.device)
    part = torch.empty(parts, 2, R, dtype=torch.int32, device=q.device)
    G = 0 if words is None else words.shape[1]
    mode = _ABSENT if words is None else _LEFT_OUT if seen_score is None else _SCORED
    score = 0.0 if seen_score is None else seen_score
    constants = {
        "STRIDE": e.stride(0), "D": D, "BM": tile.rows, "BV": tile.items, "BD": tile.depth,
        "PRECISION": "tf32x3", "HAS_BIAS": bias is not None, "SEEN": mode,
        "num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False,
    }  # fmt: skip
    level_kernel[(blocks,)](
        q, e, bias, target, words, level, R, first, T, G, score, **constants
    )  # fmt: skip
    count_kernel[(blocks, parts)](
        q, e, bias, target, level, words, part, R, V, first, size, T, G, score, **constants
    )  # fmt: skip
    return part.sum(0, dtype=torch.int64).view(2, batch, T)


def forward(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
    seen_score: float | None,
) -> tuple[Tensor, Tensor]:
    """``greater`` and ``equal``, int64 in the shape of ``targets``."""
    if targets.numel() == 0:
        return torch.zeros_like(targets), torch.zeros_like(targets)
    q, e = tiles.dense(queries), tiles.dense_rows(items)
    bias = None if item_bias is None else item_bias.detach().contiguous()
    wanted = targets if targets.dim() == 2 else targets[:, None]
    in_range = (wanted >= first_item) & (wanted < e.shape[0])
    wanted = torch.where(in_range, wanted, -1).contiguous()
    with tiles.on_device(q):
        if seen is None:
            counts = _count(q, e, bias, wanted, first_item, None, None)
        else:
            rows = triton_seen.rows_at_once(-(-(e.shape[0] - first_item) // 8), 64)
            found = []
            for top in range(0, q.shape[0], rows):
                end = min(top + rows, q.shape[0])
                words, wrong = triton_seen.seen_words(seen, top, end, first_item, e.shape[0])
                part = wanted[top:end].masked_fill(wrong[:, None], -1)
                wanted[top:end] = part
                found.append(_count(q[top:end], e, bias, part, first_item, words, seen_score))
            counts = torch.cat(found, 1)
    counts = torch.where(wanted >= 0, counts, -1)
    greater, equal = counts.view(2, *targets.shape)
    return greater.clone(), equal.clone()  # an operator's results may not share memory
