"""Rectangles for attention: a jagged batch cut into a few blocks of rows of similar length.

On the public logs 80 to 87 % of the slots of a padded batch are padding.  Sorted by length into
rectangles whose widths grow by half, under a third of the slots are.  They are for a CPU without
the compiled attention; wherever else, nothing is padded at all.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.data.fixed import FixedBatch
from seqrec.data.store import JaggedBatch, Sequences


class _Plan(NamedTuple):
    """The rectangles of a batch; everything but the shapes is int64 on the device."""

    shapes: list[tuple[int, int]]  # (rows, width) of each
    gather: Tensor  # the token in every slot
    places: Tensor  # the slot of every token
    order: Tensor  # rows in the order of the rectangles,
    back: Tensor  # where each row is among them,
    counts: Tensor  # and their lengths


class Layout:
    """Where the tokens of a jagged batch stand in its rectangles, and back.

    All sizes come from the batch's host copy of its lengths: laying a batch out never waits for the
    device.  It happens when the first rectangle is asked for.

    Attributes:
        batch: what is laid out.
    """

    def __init__(self, batch: Sequences) -> None:
        self.batch = batch

    @property
    def fixed(self) -> bool:
        """Whether only the device knows the lengths."""
        return isinstance(self.batch, FixedBatch)

    @property
    def longest(self) -> int:
        """What no sequence is longer than."""
        assert isinstance(self.batch, JaggedBatch | FixedBatch)
        return self.batch.max_length

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, width) of each rectangle."""
        return self._plan.shapes

    @cached_property
    def _plan(self) -> _Plan:
        assert isinstance(self.batch, JaggedBatch), "rectangles need lengths that the host knows"
        lengths, device = self.batch.lengths, self.batch.device
        starts = lengths.cumsum(0) - lengths
        none = torch.empty(0, dtype=torch.int64)
        shapes: list[tuple[int, int]] = []
        gathers = [none]
        places = torch.empty(self.batch.items.shape[0], dtype=torch.int64)
        filled = 0
        groups = _groups(lengths)
        for rows in groups:
            counts = lengths[rows, None]
            width = int(counts.max())
            column = torch.arange(width)
            real = column < counts
            # a padded slot repeats the row's last token: finite, and seen by no real token
            token = starts[rows, None] + torch.minimum(column, counts - 1)
            slot = filled + torch.arange(rows.numel() * width).view(-1, width)
            places[token[real]] = slot[real]
            gathers.append(token.flatten())
            shapes.append((rows.numel(), width))
            filled += rows.numel() * width
        order = torch.cat([none, *groups])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel())
        tensors = (torch.cat(gathers), places, order, back, lengths[order])
        return _Plan(shapes, *(tensor.to(device, non_blocking=True) for tensor in tensors))

    def rectangles(self, x: Tensor) -> list[Tensor]:
        """[N, C] tokens -> one [rows, width, C] block a rectangle."""
        padded = _ToSlots.apply(x, self._plan.gather, self._plan.places)
        sizes = [rows * width for rows, width in self.shapes]
        parts = padded.split(sizes)
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def tokens(self, blocks: list[Tensor]) -> Tensor:
        """The way back: blocks [rows, width, C] -> [N, C]; what stood in padded slots is gone."""
        return _ToTokens.apply(torch.cat([b.flatten(0, 1) for b in blocks]), self._plan.places)

    def last(self, x: Tensor) -> Tensor:
        """[N, C] tokens -> [B, C], the last of each row, in the batch's order."""
        return _ToTokens.apply(x, self.batch.last())

    def by_rectangle(self, x: Tensor) -> list[Tensor]:
        """[B, C], one vector a row -> one [rows, C] block a rectangle."""
        ordered = _ToSlots.apply(x, self._plan.order, self._plan.back)
        return list(ordered.split([rows for rows, _ in self.shapes]))

    def by_row(self, blocks: list[Tensor]) -> Tensor:
        """The way back: blocks [rows, C] -> [B, C], in the batch's order."""
        return _ToTokens.apply(torch.cat(blocks), self._plan.back)

    def padding(self) -> list[Tensor]:
        """One bool [rows, width] a rectangle: True where no token stands."""
        counts = self._plan.counts.split([rows for rows, _ in self.shapes])
        return [
            torch.arange(width, device=count.device) >= count[:, None]
            for count, (_, width) in zip(counts, self.shapes, strict=True)
        ]


def _groups(lengths: Tensor) -> list[Tensor]:
    """Row numbers a rectangle."""
    if lengths.numel() == 0:
        return []
    order = torch.argsort(lengths, stable=True)
    edges, edge, longest = [], 4, int(lengths.max())
    while edge < longest:
        edges.append(edge)
        edge += edge // 2
    cuts = torch.searchsorted(lengths[order], torch.tensor(edges), right=True).tolist()
    return [part for part in order.tensor_split(cuts) if part.numel()]


class _ToSlots(torch.autograd.Function):
    """Tokens to slots.  No gradient reaches a padded slot, so the way back is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _ToTokens(torch.autograd.Function):
    """Slots to tokens; places are distinct, so the gradient is copied, never added."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.slots = slots.shape[0]
        return slots.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.slots, grad.shape[1]).index_copy_(0, places, grad), None
