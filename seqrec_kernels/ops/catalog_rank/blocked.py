"""Exact ranks by counting, tile by tile: torch only, any device.

A rank is a count, not a sort: ``greater`` is the number of candidates whose score exceeds the
target's, ``equal`` the number that tie. For each block of queries the target scores come first
(``ScoreTiles.at``: the same product shape, so the same bits); then every item tile is scored,
single places are overridden, and two comparisons are summed:

    greater += sum(score > target),     at_least += sum(score >= target)

* a seen item that is left out becomes NaN, which no comparison counts; one with a given score gets
  that score;
* a target's own place gets the target's score, so it is counted in ``at_least`` exactly once and
  taken off again, whatever the tile's product would have put there;
* padding is NaN.

The comparisons write 0.0 or 1.0 into a float buffer of the tile's size: summing floats is
vectorised, summing booleans is not (at B=2048, V=12101 a comparison and its sum take 5 ms against
17 to 23 ms through bool, one core of an AMD EPYC). A tile sum is at most ``width``, so it is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.scoring import Entries, ScoreTiles, exact_products, seen_entries
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

ROWS, WIDTH = 512, 512  # queries and items of a tile: two buffers of 1 MiB; tests make them tiny


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
    with exact_products(queries.device.type):
        wanted = targets if targets.dim() == 2 else targets[:, None]
        in_range = (wanted >= first_item) & (wanted < items.shape[0])
        columns = torch.where(in_range, wanted - first_item, 0)
        tiles = ScoreTiles(queries, items, item_bias, first_item, ROWS, WIDTH)
        greater, equal = _count(tiles, columns, in_range, seen, seen_score, first_item)
        return greater.view(targets.shape), equal.view(targets.shape)


def _count(
    tiles: ScoreTiles,
    columns: Tensor,
    in_range: Tensor,
    seen: SeenItems | None,
    seen_score: float | None,
    first_item: int,
) -> tuple[Tensor, Tensor]:
    batch, slots = columns.shape
    device = columns.device
    owner = torch.arange(batch, device=device).repeat_interleave(slots)
    own = Entries(owner, columns.reshape(-1), tiles, unique=False)
    is_seen = torch.zeros(batch * slots, dtype=torch.bool, device=device)
    left_out = torch.zeros(batch, dtype=torch.int64, device=device)
    met = None
    if seen is not None:
        rows, places, wrong = seen_entries(seen, batch, first_item, first_item + tiles.count)
        in_range = in_range & ~wrong[:, None]
        met = Entries(rows, places, tiles, unique=True)
        is_seen[own.order] = met.holds(own)
        if seen_score is None:
            left_out = torch.bincount(met.rows(), minlength=batch)
    is_seen = is_seen.view(batch, slots)

    sums = torch.zeros(2, batch, slots, dtype=torch.float64, device=device)
    targets = torch.empty(batch, slots, dtype=torch.float32, device=device)
    hits = torch.empty(tiles.rows, tiles.width, dtype=torch.float32, device=device)
    for top, end in tiles.blocks():
        scores = targets[top:end]
        scores.copy_(tiles.at(columns[top:end]))
        if seen_score is not None:
            scores[is_seen[top:end]] = seen_score
        hit = hits[: end - top]
        for start in tiles.starts():
            tile = tiles.tile(start)
            flat = tile.view(-1)
            places, part = own.of(top, start)
            flat[places] = targets.view(-1)[own.order[part]]
            if met is not None:
                places, _ = met.of(top, start)
                flat[places] = torch.nan if seen_score is None else seen_score
            for slot in range(slots):
                level = scores[:, slot, None]
                sums[0, top:end, slot] += torch.gt(tile, level, out=hit).sum(1)
                sums[1, top:end, slot] += torch.ge(tile, level, out=hit).sum(1)

    greater, at_least = sums.to(torch.int64)
    # a target that is left out as seen is not among the tiles' scores, so it never counts itself
    counts_itself = torch.ones_like(is_seen) if seen_score is not None else ~is_seen
    equal = at_least - greater - counts_itself.to(torch.int64)
    # a target of NaN is last: behind all its candidates, in a tie with none
    candidates = tiles.count - left_out[:, None] - counts_itself.to(torch.int64)
    nan = targets.isnan()
    greater = torch.where(nan, candidates, greater)
    equal = torch.where(nan, 0, equal)
    return torch.where(in_range, greater, -1), torch.where(in_range, equal, -1)
