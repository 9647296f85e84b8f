"""The best k items, tile by tile: torch only, any device.

**Order.** An item is one int64 key: the float's bits, made monotone, above ``2**32 - 1 - id``. Keys
are distinct and their order is (score descending, id ascending), so a plain ``torch.topk`` over
keys settles ties by lowest id, merging two lists is a ``topk`` over both, and score and id are read
back from the key.

**Groups.** Keys for every score would cost more than the product. So each product tile ``[R, w]``
is seen as ``[R, G, w/G]`` and, while it is in cache, reduced to the maximum over G: w/G *strided
groups* (neighbours lie in different groups; the reduction is elementwise over contiguous runs and
vectorises). The k best items lie in the k groups with the largest maxima: an item outside them has
k items above it, one in each of these groups. Only the ``k G`` scores of those groups become keys.
The argument needs the maxima chosen to be above the ones left out; where the k-th and the next
tie, the rows concerned go the exact way, keys of all scores. That is rare for real scores, and
right for any.

**Memory.** Product tiles stand side by side in a *span* ``[R, S]`` of one workspace, with the group
maxima beside it; catalogues wider than S are merged span by span.

An item that scores -inf or NaN, is seen, or lies past the end of the table is never returned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.scoring import (
    Entries,
    ScoreTiles,
    exact_products,
    from_keys,
    order_keys,
    seen_entries,
)
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

ROWS, WIDTH, GROUP = 128, 2048, 16  # a product tile and its groups; tests make them tiny
SPAN = 32  # product tiles a span, at most: 32 MiB
_KEYS = 2**20  # scores turned into keys at a time on the exact way


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
            met = Entries(rows, places, tiles, unique=True)
        nothing = order_keys(queries.new_full((1, 1), -torch.inf, dtype=torch.float32), 0)
        best = nothing.expand(batch, k).clone()
        span = _Span(tiles)
        for top, end in tiles.blocks():
            starts = tiles.starts()
            for first in range(0, len(starts), SPAN):
                span.fill(starts[first : first + SPAN], top, met)
                found = span.best(k)
                best[top:end] = torch.cat((best[top:end], found), 1).topk(k, 1)[0]
    scores, ids = from_keys(best)
    gone = scores == -torch.inf
    if seen is not None:
        gone |= wrong[:, None]
    return scores.masked_fill_(gone, -torch.inf), (ids + first_item).masked_fill_(gone, -1)


class _Span:
    """Scores of one block of queries against neighbouring tiles, and the maxima of their groups."""

    def __init__(self, tiles: ScoreTiles) -> None:
        self.tiles = tiles
        count = min(SPAN, len(tiles.starts()))
        self.groups = tiles.width // GROUP  # of a tile
        self.buffer = tiles.new(tiles.rows, count * tiles.width)
        self.maxima = tiles.new(tiles.rows, count * self.groups)
        self.scores, self.tops = self.buffer, self.maxima
        self.start = 0

    def fill(self, starts: range, top: int, met: Entries | None) -> None:
        """Scores the tiles beginning at ``starts``; what is no candidate becomes -inf."""
        tiles, width = self.tiles, self.tiles.width
        held, self.start = tiles.held, starts[0]
        self.scores = self.buffer[:held, : len(starts) * width]
        self.tops = self.maxima[:held, : len(starts) * self.groups]
        for place, start in enumerate(starts):
            tile = tiles.tile(start, self.buffer[:, place * width : (place + 1) * width])
            if met is not None:
                flat, _ = met.of(top, start)
                tile[flat // width, flat % width] = -torch.inf
            tops = self.tops[:, place * self.groups : (place + 1) * self.groups]
            grouped = tile.unflatten(1, (GROUP, self.groups))
            torch.amax(grouped, 1, out=tops)
            # one sum tells whether any is NaN: padding, or a score that is no number
            if bool(tops.sum().isnan()):
                tile.nan_to_num_(-torch.inf, torch.inf, -torch.inf)
                torch.amax(grouped, 1, out=tops)

    def best(self, k: int) -> Tensor:
        """Keys of the ``min(k, all)`` best items of each row."""
        held, total = self.tops.shape
        if total < 4 * k:  # too few groups to leave anything out
            return _all_keys(self.scores, self.start, k)
        levels, chosen = self.tops.topk(k + 1, 1)
        chosen = chosen[:, :k]
        first = chosen // self.groups * self.tiles.width + chosen % self.groups
        steps = torch.arange(0, self.tiles.width, self.groups, device=chosen.device)
        members = (first[:, :, None] + steps).view(held, k * GROUP)
        keys = order_keys(self.scores.gather(1, members), members + self.start).topk(k, 1)[0]
        # a tie between the last group chosen and the first left out hides which has the lowest id
        tied = (levels[:, k - 1] == levels[:, k]) & (levels[:, k] > -torch.inf)
        again = tied.nonzero()[:, 0]
        if again.shape[0]:
            keys[again] = _all_keys(self.scores[again], self.start, k)
        return keys


def _all_keys(scores: Tensor, start: int, k: int) -> Tensor:
    """Keys of the ``min(k, W)`` best items of each row, by way of all keys."""
    rows, width = scores.shape
    ids = torch.arange(start, start + width, device=scores.device)
    turn = max(1, _KEYS // width)
    parts = [
        order_keys(scores[top : top + turn], ids).topk(min(k, width), 1)[0]
        for top in range(0, rows, turn)
    ]
    return torch.cat(parts)
