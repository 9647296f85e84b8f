"""The sampled losses on a GPU, in CUDA C++ around which Python only allocates.

**Negatives of a row's own.** ``sampled_rows`` (``csrc/common/sampled_rows.h``) gives a warp to each
row. Item rows are read where they lie, in loads of up to 16 bytes, for the logits, and for the
gradient of the query once more, when the caches still hold most of them; no row is gathered. Of the
loss nothing is saved but a scalar: the backward computes the logits again.

**What the items are owed** is a weight a slot (a row's negatives and its positive, in order).
``sort_slots`` sorts slots by item, a counting sort of eight bits a round, and ``add_sorted`` adds
the weighted queries of each item's run (``csrc/common/ordered_sums.h``): every row of the gradient
has one writer and a fixed order, and no float is added atomically.

**Shared negatives** are matrix products, and stay ``torch.mm``'s: a block of rows by their gathered
rows, in float32, under ``torch.get_float32_matmul_precision()``. ``sampled_rows`` makes losses of
the logits and puts the weights in their place; the two products with these are the gradients. So a
block of logits is written once and read three times, instead of once for each elementwise step.

**Memory.** Blocks of rows, whose weights, keys and partial sums take ``WORKSPACE`` bytes, or one
row. The host reads nothing back and no shape depends on the data.

The same programs run on the CPU, which is how they are tested without a GPU. On no GPU has this
been timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seqrec_kernels.native import cuda_unsupported as unsupported
from seqrec_kernels.ops.sampled.passes import Found
from seqrec_kernels.ops.sampled.problem import Problem

__all__ = ["run", "unsupported"]

WORKSPACE = 64 << 20  # bytes; tests make it tiny
PART, TILE = 4096, 64  # kPart and kTile of csrc/common/ordered_sums.h


def run(problem: Problem, upstream: Tensor | None, needs: list[bool]) -> Found:
    """Losses and, under an upstream gradient ``[M]``, the gradients wanted."""
    call = _Call(problem, upstream, needs)
    if problem.shared:
        _shared_negatives(call)
    else:
        _own_negatives(call)
    gradients = [t for t in (call.d_queries, call.d_items, call.d_log_q) if t is not None]
    return Found(call.losses, call.counts, gradients)


class _Call:
    """Arguments with dense rows, and what is found."""

    def __init__(self, problem: Problem, upstream: Tensor | None, needs: list[bool]) -> None:
        self.problem, self.upstream = problem, upstream
        queries, items = _dense_rows(problem.queries), _dense_rows(problem.items)
        self.queries, self.items = queries, items
        self.positives = problem.positives.contiguous()
        self.log_q = None if problem.log_q is None else problem.log_q.detach().contiguous()
        if upstream is None:
            needs = [False] * 3
        self.losses = queries.new_empty(queries.shape[:1], dtype=torch.float32)
        self.counts = torch.empty_like(self.losses)
        # the queries' is written whole, the others are added to
        self.d_queries = queries.new_empty(queries.shape, dtype=torch.float32) if needs[0] else None
        self.d_items = items.new_zeros(items.shape, dtype=torch.float32) if needs[1] else None
        self.d_log_q = items.new_zeros(items.shape[:1], dtype=torch.float32) if needs[2] else None

    @property
    def scatters(self) -> bool:
        return self.d_items is not None or self.d_log_q is not None

    def rows(self, part: slice, weights: Tensor | None, keys: Tensor | None, scored: bool) -> None:
        """``sampled_rows`` of some rows."""
        p = self.problem
        upstream, d_queries = self.upstream, self.d_queries
        torch.ops.seqrec_native.sampled_rows(
            self.queries[part], self.items, self.positives[part],
            p.negatives if p.shared else p.negatives[part], self.log_q, p.loss, p.temperature,
            p.beta, p.drop_hits, scored, None if upstream is None else upstream[part],
            self.losses[part], self.counts[part], None if d_queries is None else d_queries[part],
            weights, keys,
        )  # fmt: skip


def _dense_rows(t: Tensor) -> Tensor:
    t = t.detach()
    return t if t.stride(1) == 1 else t.contiguous()


def _blocks(rows: int, bytes_of_row: int) -> Iterator[slice]:
    """Rows that fit into the workspace together, at least one."""
    size = max(1, WORKSPACE // max(bytes_of_row, 1))
    for top in range(0, rows, size):
        yield slice(top, min(top + size, rows))


class _Owed:
    """Adds to the gradients of items and log_q what is owed to items by number."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        # digits of the largest key, which is the number of items
        self._rounds = -(-call.items.shape[0].bit_length() // 8)

    @staticmethod
    def bytes_of_slot(width: int) -> int:
        """Keys and places, before and behind a round; the digits' counts; the partial sums."""
        return 16 + 1 + 4 * (width // TILE + 1)

    def keys(self, slots: int) -> Tensor:
        """``[2, slots]``, to be filled with item numbers in row 0 (number of items: nothing)."""
        return self._call.items.new_empty((2, slots), dtype=torch.int32)

    def add(
        self,
        keys: Tensor,
        weights: Tensor | None,
        rows: Tensor,
        per_row: int = 1,
        slopes: Tensor | None = None,
    ) -> None:
        """``d_items[key] += weight rows[slot // per_row] / temperature`` and
        ``d_log_q[key] -= weight slope[slot]``, over the slots in order; None stands for ones.
        """
        library, slots = torch.ops.seqrec_native, keys.shape[1]
        places = torch.empty_like(keys)
        counts = keys.new_empty(256 * (-(-slots // PART) + 1))
        library.sort_slots(keys, places, counts, self._rounds)
        last, tiles = self._rounds % 2, -(-slots // TILE)
        order: tuple[Any, ...] = (keys[last], places[last], weights)
        if (into := self._call.d_items) is not None:
            heads = into.new_empty((tiles, into.shape[1]))
            scale = 1.0 / self._call.problem.temperature
            library.add_sorted(*order, rows, per_row, scale, heads, into)
        if (into := self._call.d_log_q) is not None:
            column = None if slopes is None else slopes[:, None]
            heads = into.new_empty((tiles, 1))
            library.add_sorted(*order, column, 1, -1.0, heads, into[:, None])


def _own_negatives(call: _Call) -> None:
    rows, width = call.queries.shape
    slots = call.problem.negatives.shape[1] + 1
    if call.upstream is None:
        call.rows(slice(0, rows), None, None, scored=False)
        return
    owed = _Owed(call) if call.scatters else None
    of_slot = 4 if owed is None else 4 + owed.bytes_of_slot(width)
    for part in _blocks(rows, slots * of_slot):
        held = part.stop - part.start
        weights = call.losses.new_empty((held, slots))
        keys = None if owed is None else owed.keys(held * slots)
        call.rows(part, weights, None if keys is None else keys[0], scored=False)
        if owed is not None and keys is not None:
            owed.add(keys, weights, call.queries[part], slots)


def _shared_negatives(call: _Call) -> None:
    rows, width = call.queries.shape
    negatives, items = call.problem.negatives, call.items
    count, temperature = negatives.shape[0], call.problem.temperature
    inside = (negatives >= 0) & (negatives < items.shape[0])
    table = items[torch.where(inside, negatives, 0)].to(torch.float32)  # [N, D]
    owed = _Owed(call) if call.scatters else None
    # their gradients, put in their places at the end
    shares, slopes = torch.zeros_like(table), table.new_zeros(count)
    stride = -(-(count + 1) // 4) * 4  # rows of logits, and the positive's, aligned
    for part in _blocks(rows, 4 * (stride + 3 * width)):
        held = part.stop - part.start
        logits = table.new_empty((held, stride))
        weights, own = logits[:, :count], logits[:, count]
        queries = call.queries[part].to(torch.float32)
        torch.mm(queries, table.t(), out=weights)
        keys = None if owed is None else owed.keys(held)
        call.rows(part, logits, None if keys is None else keys[0], scored=True)
        if call.upstream is None:
            continue
        counts = call.counts[part, None] != 0
        if call.d_queries is not None:
            positives = torch.where(counts[:, 0], call.positives[part], 0)
            out = torch.mm(weights, table, out=call.d_queries[part])
            out.addcmul_(items[positives].to(torch.float32), own[:, None]).div_(temperature)
        if owed is not None and keys is not None:
            if call.d_items is not None:
                # a row that does not count may hold anything
                shares.addmm_(weights.t(), torch.where(counts, queries, 0))
            if call.d_log_q is not None:
                slopes += weights.sum(0)
            owed.add(keys, own.contiguous(), call.queries[part])
    if owed is not None and call.upstream is not None:
        keys = owed.keys(count)
        keys[0] = torch.where(inside, negatives, items.shape[0])
        owed.add(keys, None, shares, slopes=slopes)
