"""Rectangles for attention: a jagged batch cut into a few blocks of rows of similar length.

On the public logs 80 to 87 % of the slots of a padded batch are padding.  Sorted by length into
rectangles whose widths grow by half, under a third of the slots are (on the CPU; on a GPU few large
kernels are worth more than few slots, so there it is one rectangle as wide as the longest row).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.data.store import JaggedBatch


class Layout:
    """Where the tokens of a jagged batch stand in its rectangles, and back.

    All sizes come from the batch's host copy of its lengths: building a layout never waits for the
    device.
    """

    def __init__(self, batch: JaggedBatch) -> None:
        lengths = batch.lengths
        device = batch.items.device
        starts = lengths.cumsum(0) - lengths
        self.shapes: list[tuple[int, int]] = []
        gathers: list[Tensor] = []
        places = torch.empty(batch.items.shape[0], dtype=torch.int64)
        filled = 0
        groups = _groups(lengths, single=device.type != "cpu")
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
            self.shapes.append((rows.numel(), width))
            filled += rows.numel() * width
        none = torch.empty(0, dtype=torch.int64)
        order = torch.cat([none, *groups])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel())
        self._gather = torch.cat([none, *gathers]).to(device, non_blocking=True)
        self._places = places.to(device, non_blocking=True)
        # rows in the order of the rectangles, their lengths, and where each row is among them
        self._order = order.to(device, non_blocking=True)
        self._back = back.to(device, non_blocking=True)
        self._counts = lengths[order].to(device, non_blocking=True)
        self._last = batch.last()

    def rectangles(self, x: Tensor) -> list[Tensor]:
        """[N, C] tokens -> one [rows, width, C] block a rectangle."""
        padded = _ToSlots.apply(x, self._gather, self._places)
        sizes = [rows * width for rows, width in self.shapes]
        parts = padded.split(sizes)
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def tokens(self, blocks: list[Tensor]) -> Tensor:
        """The way back: blocks [rows, width, C] -> [N, C]; what stood in padded slots is gone."""
        return _ToTokens.apply(torch.cat([b.flatten(0, 1) for b in blocks]), self._places)

    def last(self, x: Tensor) -> Tensor:
        """[N, C] tokens -> [B, C], the last of each row, in the batch's order."""
        return _ToTokens.apply(x, self._last)

    def by_rectangle(self, x: Tensor) -> list[Tensor]:
        """[B, C], one vector a row -> one [rows, C] block a rectangle."""
        ordered = _ToSlots.apply(x, self._order, self._back)
        return list(ordered.split([rows for rows, _ in self.shapes]))

    def by_row(self, blocks: list[Tensor]) -> Tensor:
        """The way back: blocks [rows, C] -> [B, C], in the batch's order."""
        return _ToTokens.apply(torch.cat(blocks), self._back)

    def padding(self) -> list[Tensor]:
        """One bool [rows, width] a rectangle: True where no token stands."""
        counts = self._counts.split([rows for rows, _ in self.shapes])
        return [
            torch.arange(width, device=count.device) >= count[:, None]
            for count, (_, width) in zip(counts, self.shapes, strict=True)
        ]


def _groups(lengths: Tensor, single: bool) -> list[Tensor]:
    """Row numbers a rectangle; without padding worth the name on the CPU."""
    if single or lengths.numel() == 0:
        return [torch.arange(lengths.numel())] if lengths.numel() else []
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
