"""The sampled losses in blocks of rows: torch only, any device. Formulas: ``problem.py``.

**A block** is some rows with the item rows they ask for. For negatives of its own a row is a *bag*
of ids, the positive first, and the two products with gathered rows are the two halves of torch's
embedding bag: ``dq = sum_v w_v e_v`` is its forward with weights, and the logits are its gradient
by the weights, ``q . e_v``. Both read item rows in place, so no ``[R, N, D]`` is gathered; for the
gradient of the items one of a few megabytes is written, ``w_v q_m``, and added row by row.
Against ``gather`` and ``bmm`` the logits take a third of the time (M=3200, N=128, D=64: 11.6
against 33 ms, one core of an AMD EPYC). Shared negatives are matrix products with rows gathered
once.

**Order.** ``index_add_`` adds in the order of the rows on a CPU, and ``index_put_`` does on a GPU,
where the other one is atomic.

**Memory.** The workspace below; beside it, and what the caller gets, vectors over rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, softplus

from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.sampled import passes
from seqrec_kernels.ops.sampled.passes import Found
from seqrec_kernels.ops.sampled.problem import Part, Problem, part_of

__all__ = ["backward", "forward", "run", "saved_shapes", "unsupported"]

# what stands for the logit of a negative that takes no part: far below every logit, yet finite, so
# that a row of nothing else still has a softmax
_OUT = -1.7e38


class Tiles(NamedTuple):
    """Block sizes; tests make them tiny."""

    floats: int = 2**20  # of the largest tensor of a block (4 MiB) ...
    most_rows: int = 1024  # ... which has no more rows than these
    cuda: int = 64  # as much more of both on a GPU


TILES = Tiles()


def run(problem: Problem, upstream: Tensor | None, needs: list[bool]) -> Found:
    """Losses and, under an upstream gradient ``[M]``, the gradients wanted."""
    losses = problem.queries.new_zeros(problem.queries.shape[:1], dtype=torch.float32)
    counts = torch.zeros_like(losses)
    sums = _Gradients(problem, needs if upstream is not None else [False] * 3)
    bank = _Shared(problem, sums) if problem.shared else None
    for top, end in _blocks(problem):
        part = part_of(problem, top, end)
        counts[top:end] = part.counts
        queries = problem.queries.detach()[top:end].to(torch.float32) / problem.temperature
        # a row that does not count may hold anything
        queries = torch.where(part.counts[:, None], queries, 0)
        block = _Bags(problem, part, queries) if bank is None else bank.block(part, queries)
        loss, own, others = _slopes(problem, block.positive, block.negative, part.kept)
        loss = torch.where(part.counts, loss, 0)
        losses[top:end] = torch.where(part.wrong, torch.nan, loss)
        if upstream is not None:
            factor = torch.where(part.counts, upstream[top:end], 0)
            block.add_to(sums, slice(top, end), own * factor, others * factor[:, None])
    if bank is not None:
        bank.finish()
    return Found(losses, counts, sums.wanted(problem))


forward = partial(passes.forward, run)
backward = partial(passes.backward, run)
saved_shapes = passes.saved_shapes


def _blocks(problem: Problem) -> Iterator[tuple[int, int]]:
    """Even blocks of rows."""
    rows, width = problem.queries.shape
    count = problem.negatives.shape[-1] + 1
    scale = TILES.cuda if problem.queries.device.type == "cuda" else 1
    # the largest tensor: logits of shared negatives, else item rows or ids (of eight bytes)
    floats = max(count, width) if problem.shared else count * max(width, 2)
    most = max(1, min(TILES.floats * scale // floats, TILES.most_rows * scale))
    size = -(-rows // max(1, -(-rows // most)))
    for top in range(0, rows, max(size, 1)):
        yield top, min(top + size, rows)


def _slopes(
    problem: Problem, positive: Tensor, negative: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each row, ``[R]``, and its slopes by the logits, ``[R]`` and ``[R, N]``.

    Rows with nothing kept get something finite. ``negative`` is used up.
    """
    negative.masked_fill_(~kept, _OUT)
    if problem.loss == "bce":
        losses = softplus(negative).sum(1) + problem.beta * softplus(-positive)
        return losses, -problem.beta * torch.sigmoid(-positive), negative.sigmoid_()
    if problem.loss == "bpr":
        share = kept.sum(1).clamp(min=1).to(torch.float32).reciprocal()
        negative -= positive[:, None]
        losses = softplus(negative).sum(1) * share
        slopes = negative.sigmoid_().mul_(share[:, None])
        return losses, -slopes.sum(1), slopes
    if negative.shape[1] == 0:
        return positive, torch.zeros_like(positive), negative
    # the largest probability is 1 / sum exp(b - max), which leaves no second pass for the sum
    high = negative.amax(1)
    slopes = torch.softmax(negative, 1, out=negative)
    over = high - slopes.amax(1).log() - positive
    all_negatives = torch.sigmoid(over)
    return softplus(over), -all_negatives, slopes.mul_(all_negatives[:, None])


class _Gradients:
    """Sums in float32, of those that are wanted."""

    def __init__(self, problem: Problem, needs: list[bool]) -> None:
        inputs = (problem.queries, problem.items, problem.log_q)
        self.queries, self.items, self.log_q = (
            torch.zeros(t.shape, dtype=torch.float32, device=t.device)
            if need and t is not None else None
            for t, need in zip(inputs, needs, strict=True)
        )  # fmt: skip

    def wanted(self, problem: Problem) -> list[Tensor]:
        """Those that are there; the queries' were collected without their divisor."""
        if self.queries is not None:
            self.queries /= problem.temperature
        found = (self.queries, self.items, self.log_q)
        return [part for part in found if part is not None]


def _add_rows(into: Tensor, ids: Tensor, values: Tensor) -> None:
    """``into[ids] += values`` in the order of ``ids``."""
    if into.device.type == "cpu":
        into.index_add_(0, ids, values)
    else:
        into.index_put_((ids,), values, accumulate=True)


class _Bags:
    """Rows with negatives of their own."""

    def __init__(self, problem: Problem, part: Part, queries: Tensor) -> None:
        self.queries = queries
        self.ids = torch.cat([part.positives[:, None], part.negatives], 1)  # [R, 1 + N]
        rows, count = self.ids.shape
        flat = self.ids.view(-1)
        self.table, self.places = problem.items.detach(), flat
        if self.table.dtype != torch.float32 or not self.table.is_contiguous():
            self.table = self.table.index_select(0, flat).to(torch.float32)
            self.places = torch.arange(rows * count, device=flat.device)
        row = torch.arange(rows, device=flat.device)
        logits = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            queries, self.table, self.places, row * count, row.repeat_interleave(count), 0
        ).view(rows, count)
        if problem.log_q is not None:
            logits -= problem.log_q.detach()[self.ids]
        self.positive, self.negative = logits[:, 0].clone(), logits[:, 1:].clone()

    def add_to(self, sums: _Gradients, rows: slice, own: Tensor, others: Tensor) -> None:
        """Adds gradients, where the derivatives by the logits are ``own`` and ``others``."""
        slopes = torch.cat([own[:, None], others], 1)
        # on several threads torch refuses bags of vectors without a component
        if sums.queries is not None and self.queries.shape[1]:
            sums.queries[rows] = embedding_bag(
                self.places.view_as(slopes), self.table, per_sample_weights=slopes, mode="sum"
            )
        flat = self.ids.view(-1)
        if sums.items is not None:
            shares = slopes[:, :, None] * self.queries[:, None, :]
            _add_rows(sums.items, flat, shares.flatten(0, 1))
        if sums.log_q is not None:
            _add_rows(sums.log_q, flat, slopes.view(-1).neg())


class _Shared:
    """The negatives of all rows, gathered once, and the block of rows that stands before them."""

    def __init__(self, problem: Problem, sums: _Gradients) -> None:
        self._problem, self._sums = problem, sums
        items = problem.items.shape[0]
        inside = (problem.negatives >= 0) & (problem.negatives < items)
        self._ids = torch.where(inside, problem.negatives, 0)
        self._table = problem.items.detach()[self._ids].to(torch.float32)
        # their gradients, put in their places at the end
        self._shares = None if sums.items is None else torch.zeros_like(self._table)
        self._slopes = None if sums.log_q is None else self._table.new_zeros(self._ids.shape)

    def block(self, part: Part, queries: Tensor) -> _Shared:
        """The logits of some rows; they stand in it until the next call."""
        problem = self._problem
        self.part, self.queries = part, queries
        self.own = problem.items.detach()[part.positives].to(torch.float32)
        self.positive = (queries * self.own).sum(1)
        self.negative = queries @ self._table.t()
        if problem.log_q is not None:
            log_q = problem.log_q.detach()
            self.positive -= log_q[part.positives]
            self.negative -= log_q[self._ids]
        return self

    def add_to(self, sums: _Gradients, rows: slice, own: Tensor, others: Tensor) -> None:
        """As of bags."""
        if sums.queries is not None:
            out = torch.mm(others, self._table, out=sums.queries[rows])
            out.addcmul_(self.own, own[:, None])
        if sums.items is not None and self._shares is not None:
            self._shares.addmm_(others.t(), self.queries)
            _add_rows(sums.items, self.part.positives, own[:, None] * self.queries)
        if sums.log_q is not None and self._slopes is not None:
            self._slopes -= others.sum(0)
            _add_rows(sums.log_q, self.part.positives, -own)

    def finish(self) -> None:
        """Puts the gradients of the negatives in their places."""
        if self._sums.items is not None and self._shares is not None:
            _add_rows(self._sums.items, self._ids, self._shares)
        if self._sums.log_q is not None and self._slopes is not None:
            _add_rows(self._sums.log_q, self._ids, self._slopes)
