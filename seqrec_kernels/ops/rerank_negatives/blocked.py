"""Scores of some rows' candidates at a time: torch only, any device.

**Scores.** The shared candidates' rows are gathered once and scored as a matrix product of one
padded shape (``ops/scoring.py``), those of a row's own as one product a row, from as many rows'
candidates as ``FLOATS`` numbers hold. So one item's score may differ in its last bit between the
two; an id that stands in both and counts once has the score of the shared one.

**Order.** A slot becomes an int64 key (``ops/scoring.py``); repeats are found by sorting ids, and
torch, which has no selection of a rank that differs from row to row, sorts the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.rerank_negatives.problem import Problem, drawn
from seqrec_kernels.ops.scoring import (
    ScoreTiles,
    exact_products,
    from_keys,
    order_keys,
    seen_entries,
)

__all__ = ["forward", "unsupported"]

FLOATS, ROWS, WIDTH = 2**20, 256, 2048  # gathered numbers, and a product tile; tests make them tiny
_NONE = -(2**63)  # the key of no candidate, below those of -inf


def forward(problem: Problem) -> Tensor:
    """The id each row draws, ``[B]``."""
    queries, items, own = problem.queries.detach(), problem.items.detach(), problem.candidates
    batch, depth = queries.shape
    found = torch.full((batch,), -1, device=queries.device)
    met = None if problem.forbidden is None else _Forbidden(problem)
    shared = 0 if problem.shared is None else problem.shared.shape[0]
    floats = shared + (0 if own is None else own.shape[1] * depth)  # of a row
    bank = items[:1]  # where nothing is shared: one column, left out again
    if shared and problem.shared is not None:
        bank = items[_inside(problem, problem.shared)[1]]
    with exact_products(queries.device.type):
        tiles = ScoreTiles(
            queries, bank, None, 0, min(ROWS, max(1, FLOATS // max(1, floats))), WIDTH
        )
        for top, end in tiles.blocks():
            scores = torch.cat([tiles.tile(start).clone() for start in tiles.starts()], 1)
            scores = scores[:, :shared]
            if own is not None:
                rows = items[_inside(problem, own[top:end])[1]].float()
                products = torch.bmm(rows, queries[top:end, :, None].float())[:, :, 0]
                scores = torch.cat((scores, products), 1)
            found[top:end] = _draw(problem, top, end, scores, met)
    return found


def _inside(problem: Problem, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ids are candidates, and ids that may be looked up."""
    inside = (ids >= problem.first_item) & (ids < problem.items.shape[0])
    return inside, torch.where(inside, ids, 0)


def _draw(problem: Problem, top: int, end: int, scores: Tensor, met: _Forbidden | None) -> Tensor:
    """The ids that the rows ``top .. end - 1`` draw from their slots' scores."""
    ids = problem.slots(top, end)
    inside, places = _inside(problem, ids)
    gone = ((ids != -1) & ~inside).any(1)
    allowed = inside & ~scores.isnan()
    if met is not None:
        allowed &= ~met.holds(top, places)
        gone |= met.wrong[top:end]
    if problem.drop:
        order = places.masked_fill(~allowed, -1).sort(dim=1, stable=True)
        fresh = torch.ones_like(allowed)
        fresh[:, 1:] = order.values[:, 1:] != order.values[:, :-1]
        allowed &= torch.empty_like(fresh).scatter_(1, order.indices, fresh)
    keys = order_keys(scores.nan_to_num(0.0, torch.inf, -torch.inf), places)
    keys = keys.masked_fill_(~allowed, _NONE).sort(1, descending=True).values
    return drawn(problem, from_keys(keys)[1], allowed.sum(1), top).masked_fill_(gone, -1)


class _Forbidden:
    """Which items each row may not draw, as sorted (row, item) numbers."""

    def __init__(self, problem: Problem) -> None:
        assert problem.forbidden is not None
        self.items = problem.items.shape[0]
        rows, ids, self.wrong = seen_entries(
            problem.forbidden, problem.queries.shape[0], 0, self.items
        )
        self.keys = (rows * self.items + ids).sort().values

    def holds(self, top: int, ids: Tensor) -> Tensor:
        """Whether the rows from ``top`` on may not draw ``ids [R, n]``."""
        if not self.keys.shape[0]:
            return torch.zeros_like(ids, dtype=torch.bool)
        rows = torch.arange(top, top + ids.shape[0], device=ids.device)
        wanted = rows[:, None] * self.items + ids
        place = torch.searchsorted(self.keys, wanted).clamp_(max=self.keys.shape[0] - 1)
        return self.keys[place] == wanted
