"""The best k items, tile by tile: torch only, any device.

**Order.** An item is one int64 key: the float's bits, made monotone, above ``2**32 - 1 - id``. Keys
are distinct and their order is (score descending, id ascending), so a plain ``torch.topk`` over
keys settles ties by lowest id, merging two lists is a ``topk`` over both, and score and id are read
back from the key.

**Groups.** Keys for every score would cost more than the product. So a tile ``[R, W]`` is seen as
``[R, G, W/G]`` and reduced to the maximum over G, W/G *strided groups* (neighbours lie in different
groups; the reduction is elementwise over contiguous runs and vectorises). The k best items lie in
the k groups with the largest maxima: an item outside them has k items above it, one in each of
these groups. Only the ``k G`` scores of those groups become keys. The argument needs the maxima
chosen to be above the ones left out; where the k-th and the next tie, the rows concerned go the
exact way, keys of the whole tile. That is rare for real scores and right for any.

An item that scores -inf or NaN, is seen, or lies past the end of the table is never returned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.scoring import Entries, ScoreTiles, exact_products, seen_entries
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

ROWS, WIDTH, GROUP = 128, 16384, 32  # a tile of 8 MiB; tests make them tiny
_KEYS = 2**20  # scores turned into keys at a time on the exact way

_LOW = 0xFFFFFFFF


def forward(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
) -> tuple[Tensor, Tensor]:
    """Scores and ids ``[B, k]``, best first, ties by lowest id."""
    batch = queries.shape[0]
    with exact_products(queries.device.type):
        tiles = ScoreTiles(queries, items, item_bias, first_item, ROWS, WIDTH)
        met = None
        if seen is not None:
            rows, places, wrong = seen_entries(seen, batch, first_item, items.shape[0])
            met = Entries(rows, places, tiles, repeats=True)
        nothing = _keys(queries.new_full((1, 1), -torch.inf, dtype=torch.float32), 0)
        best = nothing.expand(batch, k).clone()
        for top, end in tiles.blocks():
            for start in tiles.starts():
                tile = tiles.tile(start)
                if met is not None:
                    tile.view(-1)[met.of(top, start)[0]] = -torch.inf
                found = _best_of(tile, start, k)
                best[top:end] = torch.cat((best[top:end], found), 1).topk(k, 1)[0]
    scores, ids = _decode(best)
    gone = scores == -torch.inf
    if seen is not None:
        gone |= wrong[:, None]
    return scores.masked_fill_(gone, -torch.inf), (ids + first_item).masked_fill_(gone, -1)


def _best_of(tile: Tensor, start: int, k: int) -> Tensor:
    """Keys of at least the ``min(k, W)`` best items of each row of a tile."""
    rows, width = tile.shape
    group = GROUP if width % GROUP == 0 else 1
    groups = width // group
    if groups < 4 * k:
        return _all_keys(tile.nan_to_num_(-torch.inf, torch.inf, -torch.inf), start, k)
    maxima = tile.view(rows, group, groups).amax(1)
    if bool(maxima.isnan().any()):  # padding, or a NaN among the scores
        tile.nan_to_num_(-torch.inf, torch.inf, -torch.inf)
        maxima = tile.view(rows, group, groups).amax(1)
    levels, chosen = maxima.topk(k + 1, 1)
    chosen = chosen[:, None, :k].expand(rows, group, k)
    members = torch.arange(group, device=tile.device)[None, :, None] * groups + chosen
    scores = tile.view(rows, group, groups).gather(2, chosen)
    keys = _keys(scores, members + start).view(rows, group * k).topk(k, 1)[0]
    # a tie between the last group chosen and the first left out hides which holds the lowest id
    tied = ((levels[:, k - 1] == levels[:, k]) & (levels[:, k] > -torch.inf)).nonzero()[:, 0]
    if tied.shape[0]:
        keys[tied] = _all_keys(tile[tied], start, k)
    return keys


def _all_keys(scores: Tensor, start: int, k: int) -> Tensor:
    """Keys of the ``min(k, W)`` best items of each row, by way of all keys."""
    rows, width = scores.shape
    ids = torch.arange(start, start + width, device=scores.device)
    turn = max(1, _KEYS // width)
    parts = [
        _keys(scores[top : top + turn], ids).topk(min(k, width), 1)[0]
        for top in range(0, rows, turn)
    ]
    return torch.cat(parts)


def _keys(scores: Tensor, ids: Tensor | int) -> Tensor:
    """int64 keys in the order (score descending, id ascending); scores without NaN."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: both zeros are one score
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.to(torch.int64) << 32) | (_LOW - ids)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of keys."""
    monotone = (keys >> 32).to(torch.int32)
    bits = monotone ^ ((monotone >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _LOW - (keys & _LOW)
