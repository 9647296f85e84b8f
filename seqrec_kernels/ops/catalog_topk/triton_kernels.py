"""The best k items on the GPU: maxima of groups first, then the scores of the best groups.

**First pass.** Every score tile is reduced to one key for each group of 32 neighbouring items: the
largest score that may win (not seen, not NaN), made monotone as an integer, above the complement of
the group's number. Keys are distinct and their order is (score descending, group ascending).

**Choice.** ``torch.topk`` over the keys picks each row's k best groups. They hold its k best items:
let x be one of these, in group g, and suppose k other groups come before g. The best item of such a
group h scores more than g's best, hence more than x; or as much, with h < g, hence at least as much
as x with a lower id, since groups are runs of neighbouring ids. Either way h holds an item that
comes before x, so k items come before x: a contradiction. Ties need no further care.

**Second pass.** The same program scores the same tiles again, those in which a row has chosen a
group, and writes the chosen groups' scores as keys of items. The tiles are the first pass's, so
their bits are too. A last ``torch.topk`` over ``32 k`` keys a row puts the items in order, ties by
lowest id.

Nothing is read back by the host and no shape depends on the data. Two passes and two selections are
what the first version pays for being exact; whether a queue in CUDA beats them is unmeasured.

**Memory.** For each row 12 bytes a group (seen bits and a key: 1/11 of its float32 scores) and
256 k bytes; as many rows at a time as fit into ``triton_seen.WORKSPACE``.
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
from seqrec_kernels.tiles import load_rows, scores
from seqrec_kernels.triton_loader import unsupported
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

_GROUP = tl.constexpr(32)  # items of a group: one word of seen bits
_LOW = tl.constexpr(2**32 - 1)


@triton.jit
def _keys(b_s, b_n):
    """int64 keys in the order (score descending, number ascending)."""
    b_s = tl.where(b_s == 0, 0.0, b_s)  # both zeros are one score
    b_i = b_s.to(tl.int32, bitcast=True)
    b_i = b_i ^ ((b_i >> 31) & 0x7FFFFFFF)
    return (b_i.to(tl.int64) << 32) | (_LOW - b_n.to(tl.int64))


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and numbers of keys."""
    monotone = (keys >> 32).to(torch.int32)
    bits = monotone ^ ((monotone >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _LOW.value - (keys & _LOW.value)


@triton.jit(do_not_specialize=["M", "V", "first", "size", "G", "K"])
def topk_kernel(
    q, e, bias, words, keys, chosen, M, V, first, size, G, K,
    STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SEEN: tl.constexpr,
    SECOND: tl.constexpr,
):  # fmt: skip
    """First pass: writes ``keys`` [M, G]. Second: ``keys`` hold a group's slot among the K chosen,
    or -1, and the items' keys go to ``chosen`` [M, K, 32].
    """
    BG: tl.constexpr = BV // _GROUP
    i_m = tl.program_id(0).to(tl.int64) * BM
    i_s = tl.program_id(1).to(tl.int64)
    o_m = i_m + tl.arange(0, BM)
    m_m = o_m < M
    b_q = load_rows(q, i_m, M, 0, D, D, BM, BD)  # [BM, BD]
    i_first = i_s * size * BV
    for i_c in range(i_first, tl.minimum(i_first + size * BV, V - first), BV):
        o_g = i_c // _GROUP + tl.arange(0, BG)
        m_g = m_m[:, None] & (o_g < G)[None, :]  # [BM, BG]
        p_g = keys + o_m[:, None] * G + o_g[None, :]
        wanted = True
        if SECOND:
            b_slot = tl.load(p_g, mask=m_g, other=-1)  # [BM, BG]
            wanted = tl.max(tl.max(b_slot, 1), 0) >= 0
        if wanted:
            i_v = first + i_c
            o_v = i_v + tl.arange(0, BV)
            b_s = scores(q, e, b_q, i_m, M, i_v, V, D, STRIDE, D, BM, BV, BD, PRECISION)
            if HAS_BIAS:
                b_s += tl.load(bias + o_v, mask=o_v < V, other=0.0)[None, :]
            m_c = (o_v < V)[None, :] & (b_s == b_s)  # NaN never wins
            if HAS_SEEN:
                m_c = m_c & ~seen_tile(words, o_m, m_m, i_c, G, BM, BV)
            b_s = tl.where(m_c, b_s, -float("inf"))
            if SECOND:
                b_key = tl.reshape(_keys(b_s, (o_v - first)[None, :]), [BM, BG, _GROUP])
                o_row = o_m[:, None] * K + b_slot  # [BM, BG]
                p_key = chosen + o_row[:, :, None] * _GROUP + tl.arange(0, _GROUP)[None, None, :]
                tl.store(p_key, b_key, mask=(m_g & (b_slot >= 0))[:, :, None])
            else:
                b_max = tl.max(tl.reshape(b_s, [BM, BG, _GROUP]), 2)  # [BM, BG]
                tl.store(p_g, _keys(b_max, o_g[None, :]), mask=m_g)


def _best(
    q: Tensor, e: Tensor, bias: Tensor | None, words: Tensor | None, first: int, k: int
) -> Tensor:
    """Keys of the best ``min(k, 32 groups)`` items of each row, best first."""
    (M, D), V = q.shape, e.shape[0]
    tile = tiles.tile("ranks", q.dtype, D, tiles.capability(q))
    blocks = triton.cdiv(M, tile.rows)
    parts, size = tiles.splits(blocks, triton.cdiv(V - first, tile.items))
    G = triton.cdiv(V - first, _GROUP.value)
    K = min(k, G)
    keys = torch.empty(M, G, dtype=torch.int64, device=q.device)
    constants = {
        "STRIDE": e.stride(0), "D": D, "BM": tile.rows, "BV": tile.items, "BD": tile.depth,
        "PRECISION": "tf32x3", "HAS_BIAS": bias is not None, "HAS_SEEN": words is not None,
        "num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False,
    }  # fmt: skip
    topk_kernel[(blocks, parts)](
        q, e, bias, words, keys, None, M, V, first, size, G, K, SECOND=False, **constants
    )
    groups = keys.topk(K, 1, sorted=False)[1]
    slots = torch.arange(K, device=q.device).expand(M, K)
    keys.fill_(-1).scatter_(1, groups, slots)
    chosen = torch.empty(M, K * _GROUP.value, dtype=torch.int64, device=q.device)
    topk_kernel[(blocks, parts)](
        q, e, bias, words, keys, chosen, M, V, first, size, G, K, SECOND=True, **constants
    )
    return chosen.topk(min(k, chosen.shape[1]), 1)[0]


def forward(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
) -> tuple[Tensor, Tensor]:
    """Scores and ids ``[B, k]``, best first, ties by lowest id."""
    q, e = tiles.dense(queries), tiles.dense_rows(items)
    bias = None if item_bias is None else item_bias.detach().contiguous()
    batch, V = q.shape[0], e.shape[0]
    best = torch.full((batch, k), -torch.inf, dtype=torch.float32, device=q.device)
    ids = torch.full((batch, k), -1, dtype=torch.int64, device=q.device)
    groups = -(-(V - first_item) // _GROUP.value)
    rows = triton_seen.rows_at_once(12 * groups + 256 * min(k, groups), 64)
    with tiles.on_device(q):
        for top in range(0, batch, rows):
            end = min(top + rows, batch)
            words = wrong = None
            if seen is not None:
                words, wrong = triton_seen.seen_words(seen, top, end, first_item, V)
            found, numbers = _decode(_best(q[top:end], e, bias, words, first_item, k))
            gone = found == -torch.inf
            if wrong is not None:
                gone |= wrong[:, None]
            width = found.shape[1]
            best[top:end, :width] = found.masked_fill_(gone, -torch.inf)
            ids[top:end, :width] = (numbers + first_item).masked_fill_(gone, -1)
    return best, ids
