"""Catalogue cross-entropy in cache-sized blocks: torch only, any device.

**Mathematics.** With logits ``x_mv = q_m . e_v / t + b_v``, weights ``w_mt``, mass
``W_m = sum_t w_mt`` and ``p_m = softmax_v(x_m)``,

    loss_m       = W_m LSE_v(x_mv) - sum_t w_mt x_m,t
    d loss_m / d x_mv = W_m p_mv - sum_{t: target t is v} w_mt

so the gradients are, with ``g_m`` the upstream gradient of row m,

    dq_m = 1/t sum_v g_m W_m p_mv e_v - 1/t sum_t g_m w_mt e_t          (and de_v, db_v alike)

a *dense part*, two products with the probabilities, and a *sparse part*, a few gathered rows.

**One primitive.** Every path rests on one step: a block of logits ``[R, V']`` is turned into its
own softmax in place, and the log-sum-exp of the block comes out beside it:
``LSE = max(x) - log(max(p))``, exact because the largest probability is ``1 / sum exp(x - max)``.
torch's softmax does maximum, exponential, sum and division while a row is in the first cache, which
is cheaper than ``exp_`` alone on a block (26 against 33 ms for 3200 x 12101, one core of an AMD
EPYC), and needs no assumption about the size of logits. Probabilities against the whole catalogue
are ``p * exp(LSE_block - LSE)``, a factor a row, multiplied into the thin operand of each product
and never into the block.

**Two plans.**

*One pass* (CPU, mean or sum with a gradient wanted, and rows of all V items fit the cache): for
each block of rows, logits -> softmax in place -> dQ and dE. Three products, one exponential; the
upstream gradient multiplies the finished gradients in the backward.

*Recompute* (everything else): the forward runs over item tiles and folds their log-sum-exps
together; the backward forms each tile again with the upstream gradient at hand. Items are the
outer loop, so a tile's rows of dE stay in cache until they are complete. Four products, two
exponentials, memory independent of V.

**Memory.** One workspace a call, used by every block through ``out=``; beside it only vectors over
rows, a copy of the queries, and what the caller gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.catalog_cross_entropy.labels import (
    Labels,
    Problem,
    labels_of,
    reduced,
    shapes_saved,
)

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

# what stands for a bias of -inf: far below every logit, yet finite, so that a block whose items are
# all taken out still has a softmax (it weighs exp(-1.7e38 - LSE) = 0 against the catalogue)
_OUT = -1.7e38


class Tiles(NamedTuple):
    """Block sizes; tests make them tiny."""

    one_pass: int = 2**22  # floats in the workspace of the one-pass plan (16 MiB) ...
    least_rows: int = 32  # ... which must hold this many rows of all items
    most_rows: int = 128  # and uses no more than these
    tile_rows: int = 256  # recompute: rows by items of a tile (2 MiB)
    tile_items: int = 2048
    product: int = 4096  # items of one product; wider ones run slower where the row count is small


TILES = Tiles()


def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """``total`` cut into pieces of ``size``, the last one shorter."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _one_pass_rows(problem: Problem, needs: list[bool]) -> int:
    """Rows of a one-pass block, 0 where the plan is recompute."""
    if problem.reduction == "none" or not any(needs) or problem.queries.device.type != "cpu":
        return 0
    rows = min(TILES.one_pass // (problem.items.shape[0] - problem.first_item), TILES.most_rows)
    if rows < TILES.least_rows:
        return 0
    blocks = -(-problem.queries.shape[0] // rows)
    return -(-problem.queries.shape[0] // max(blocks, 1))  # even blocks


class _Workspace:
    """The one large buffer of a call, shared by all its blocks, and the small ones beside it."""

    def __init__(self, queries: Tensor, items: Tensor, rows: int, columns: int) -> None:
        width = queries.shape[1]
        # rows of the block begin on cache lines
        self.block = queries.new_empty(rows * (-(-columns // 64) * 64))
        self.scaled = queries.new_empty(rows * width)
        self.copied = queries.new_empty(0 if _ready(items) else columns * width)

    def logits(self, queries: Tensor, items: Tensor, bias: Tensor | None) -> Tensor:
        """The block ``queries @ items^T + bias``, ``[R, V' rounded up]``, -inf in the padding."""
        rows, columns = queries.shape[0], items.shape[0]
        padded = -(-columns // 64) * 64
        block = self.block[: rows * padded].view(rows, padded)
        for start, stop in _ranges(columns, TILES.product):
            torch.mm(queries, items[start:stop].t(), out=block[:, start:stop])
        if bias is not None:
            block[:, :columns] += bias
        block[:, columns:] = -torch.inf
        return block

    def scale(self, queries: Tensor, factor: Tensor) -> Tensor:
        """``queries`` with each row multiplied by its ``factor``."""
        out = self.scaled[: queries.numel()].view_as(queries)
        return torch.mul(queries, factor[:, None], out=out)

    def rows_of(self, items: Tensor, start: int, stop: int) -> Tensor:
        """Rows of the item table as matrix products want them, copied only where they must be."""
        part = items[start:stop]
        if _ready(items):
            return part
        return self.copied[: part.numel()].view(part.shape).copy_(part)


def _ready(matrix: Tensor) -> bool:
    """Whether a product reads ``matrix`` as it lies: float32, rows dense and apart."""
    dense = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return matrix.dtype == torch.float32 and dense


def _softmax_(block: Tensor) -> Tensor:
    """Turns ``[R, V']`` logits into their softmax, in place; returns their LSE, ``[R]``."""
    high = block.amax(1)
    torch.softmax(block, 1, out=block)
    return high - block.amax(1).log_()


def _chosen(block: Tensor, columns: Tensor, start: int, stop: int) -> Tensor:
    """Logits at the targets, ``[R, T]``, 0 for one outside the block's items ``start .. stop``."""
    inside = (columns >= start) & (columns < stop)
    local = torch.where(inside, columns - start, 0)
    return torch.where(inside, block.gather(1, local), 0)


def _bias(problem: Problem) -> Tensor | None:
    """The bias of the items that take part, finite."""
    if problem.item_bias is None:
        return None
    return problem.item_bias.detach()[problem.first_item :].clamp(min=_OUT)


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss and what the backward needs: the gradients themselves, or the LSE of rows.

    Args:
        needs: whether queries, items and item_bias want a gradient.
    """
    labels = labels_of(problem, torch.float32)
    queries = problem.queries.detach().to(torch.float32) / problem.temperature
    items = problem.items.detach()[problem.first_item :]
    if queries.shape[0] == 0:
        loss = queries.new_zeros(() if problem.reduction != "none" else (0,))
        return loss, [queries.new_zeros(shape) for shape in saved_shapes(problem, needs)]
    rows = _one_pass_rows(problem, needs)
    if rows:
        return _one_pass(problem, labels, queries, items, rows, needs)

    tile_rows = min(TILES.tile_rows, queries.shape[0])
    tile_items = min(TILES.tile_items, items.shape[0])
    work = _Workspace(queries, items, tile_rows, tile_items)
    bias = _bias(problem)
    lse = queries.new_full(queries.shape[:1], -torch.inf)
    chosen = torch.zeros_like(labels.weights)
    for start, stop in _ranges(items.shape[0], tile_items):
        tile = work.rows_of(items, start, stop)
        tile_bias = None if bias is None else bias[start:stop]
        for top, end in _ranges(queries.shape[0], tile_rows):
            block = work.logits(queries[top:end], tile, tile_bias)
            chosen[top:end] += _chosen(block, labels.columns[top:end], start, stop)
            torch.logaddexp(lse[top:end], _softmax_(block), out=lse[top:end])
    return reduced(problem, labels, lse, chosen), [lse] if any(needs) else []


def _one_pass(
    problem: Problem, labels: Labels, queries: Tensor, items: Tensor, rows: int, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Loss and finished gradients of a mean or a sum, for an upstream gradient of 1."""
    need_queries, need_items, need_bias = needs
    work = _Workspace(queries, items, rows, items.shape[0])
    items = work.rows_of(items, 0, items.shape[0])
    bias = _bias(problem)
    lse = queries.new_empty(queries.shape[:1])
    chosen = torch.empty_like(labels.weights)
    saved = [queries.new_zeros(shape) for shape in saved_shapes(problem, needs)]
    parts = iter(saved)
    d_queries = next(parts) if need_queries else None
    d_items = next(parts)[problem.first_item :] if need_items else None
    d_bias = next(parts)[problem.first_item :] if need_bias else None
    dense = labels.scale * labels.mass
    for top, end in _ranges(queries.shape[0], rows):
        block = work.logits(queries[top:end], items, bias)
        chosen[top:end] = _chosen(block, labels.columns[top:end], 0, items.shape[0])
        lse[top:end] = _softmax_(block)
        block = block[:, : items.shape[0]]
        if d_queries is not None:
            torch.mm(block, items, out=d_queries[top:end])
        if d_items is not None:
            d_items.addmm_(block.t(), work.scale(queries[top:end], dense[top:end]))
        if d_bias is not None:
            d_bias.addmv_(block.t(), dense[top:end])
    if d_queries is not None:
        d_queries.mul_(dense[:, None])
    _sparse_part(queries, items, labels, labels.scale, d_queries, d_items, d_bias)
    if d_queries is not None:
        d_queries.div_(problem.temperature)
    return reduced(problem, labels, lse, chosen), saved


def _sparse_part(
    queries: Tensor,
    items: Tensor,
    labels: Labels,
    upstream: Tensor,
    d_queries: Tensor | None,
    d_items: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Takes the targets' share off the gradients; ``index_put_`` adds in a fixed order."""
    pull = labels.weights * -upstream[:, None]
    rows, slots = pull.shape
    if slots == 0:
        return
    # as many rows a turn as keep the gathered [rows, slots, D] small
    for top, end in _ranges(rows, max(1, 4096 // slots)):
        columns = labels.columns[top:end]
        part = pull[top:end]
        if d_queries is not None:
            picked = items[columns.reshape(-1)].to(torch.float32).view(end - top, slots, -1)
            d_queries[top:end] += torch.bmm(part[:, None, :], picked)[:, 0]
        if d_items is not None:
            values = part[:, :, None] * queries[top:end, None, :]
            d_items.index_put_((columns.reshape(-1),), values.flatten(0, 1), accumulate=True)
        if d_bias is not None:
            d_bias.index_put_((columns.reshape(-1),), part.reshape(-1), accumulate=True)


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, items, item_bias, each in its input's dtype."""
    inputs = [problem.queries, problem.items, problem.item_bias]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    if problem.queries.shape[0] == 0:
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in wanted]
    if _one_pass_rows(problem, needs):
        return [(part * grad).to(t.dtype) for part, t in zip(saved, wanted, strict=True)]
    return _recompute(grad, problem, saved[0], needs)


def _recompute(grad: Tensor, problem: Problem, lse: Tensor, needs: list[bool]) -> list[Tensor]:
    need_queries, need_items, need_bias = needs
    labels = labels_of(problem, torch.float32)
    queries = problem.queries.detach().to(torch.float32) / problem.temperature
    items = problem.items.detach()[problem.first_item :]
    tile_rows = min(TILES.tile_rows, queries.shape[0])
    tile_items = min(TILES.tile_items, items.shape[0])
    work = _Workspace(queries, items, tile_rows, tile_items)
    bias = _bias(problem)
    upstream = grad.to(torch.float32) * labels.scale
    dense = upstream * labels.mass

    d_queries = torch.zeros_like(queries) if need_queries else None
    d_items = queries.new_zeros(problem.items.shape) if need_items else None
    d_bias = queries.new_zeros(problem.items.shape[:1]) if need_bias else None
    inner_items = None if d_items is None else d_items[problem.first_item :]
    inner_bias = None if d_bias is None else d_bias[problem.first_item :]
    product = torch.empty_like(queries[:tile_rows])
    for start, stop in _ranges(items.shape[0], tile_items):
        tile = work.rows_of(items, start, stop)
        tile_bias = None if bias is None else bias[start:stop]
        for top, end in _ranges(queries.shape[0], tile_rows):
            block = work.logits(queries[top:end], tile, tile_bias)
            # the tile's own softmax, weighed by its share of the catalogue's
            factor = (_softmax_(block) - lse[top:end]).exp_() * dense[top:end]
            block = block[:, : stop - start]
            if d_queries is not None:
                torch.mm(block, tile, out=product[: end - top])
                d_queries[top:end].addcmul_(product[: end - top], factor[:, None])
            if inner_items is not None:
                inner_items[start:stop].addmm_(block.t(), work.scale(queries[top:end], factor))
            if inner_bias is not None:
                inner_bias[start:stop].addmv_(block.t(), factor)
    _sparse_part(queries, items, labels, upstream, d_queries, inner_items, inner_bias)
    if d_queries is not None:
        d_queries.div_(problem.temperature)
    inputs = [problem.queries, problem.items, problem.item_bias]
    found = [d_queries, d_items, d_bias]
    return [
        g.to(t.dtype) for g, t in zip(found, inputs, strict=True) if g is not None and t is not None
    ]


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32: the registration's fake mirrors them."""
    return shapes_saved(problem, needs, one_pass=bool(_one_pass_rows(problem, needs)))
