"""Crop, mask and reorder: the augmented views of CL4SRec, on jagged batches on their device.

Xie et al., "Contrastive Learning for Sequential Recommendation" (ICDE 2022), section III-C.  For a
sequence of n items

* crop keeps a random window of max(1, floor(keep * n)) items,
* mask puts the mask row in the place of floor(share * n) items, drawn without replacement,
* reorder shuffles a random window of floor(share * n) items.

Each of two views applies one operator to each sequence, and the two operators of a sequence differ.
Lengths decide shapes, so what decides them (the operator) is drawn on the host, from counters; the
numbers for items are drawn where the items are.  No step loops over sequences or asks the device
for anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.data.fixed import FixedBatch, cut
from seqrec.data.philox import STREAM_ITEMS, STREAM_SEQUENCES
from seqrec.data.store import JaggedBatch, to_device
from seqrec_kernels import philox

CROP, MASK, REORDER = range(3)


@dataclass(frozen=True)
class Augmentation:
    """How much each operator changes.

    Args:
        crop: share of a sequence that a crop keeps.
        mask: share of the items that a mask hides.
        reorder: share of a sequence that a reordering shuffles.
        mask_row: the row of the item table that stands for a hidden item.
    """

    crop: float
    mask: float
    reorder: float
    mask_row: int

    def views(self, batch: JaggedBatch, seed: int) -> tuple[JaggedBatch, JaggedBatch]:
        """Two views of every sequence, by two different operators.

        Args:
            batch: B sequences, none empty.
            seed: of this very batch; equal seeds are equal views.
        """
        one, other = self._two(len(batch), seed, torch.device("cpu"))
        return self._apply(batch, one, seed, 0), self._apply(batch, other, seed, 1)

    def apply(self, batch: JaggedBatch, operators: np.ndarray, seed: int, view: int) -> JaggedBatch:
        """One operator a sequence.

        Args:
            batch: B sequences, none empty.
            operators: [B], each CROP, MASK or REORDER, on the host.
            seed: of this very batch.
            view: keeps the draws of two views apart.
        """
        return self._apply(batch, torch.from_numpy(operators), seed, view)

    def fixed_views(self, batch: FixedBatch, seed: Tensor, capacity: int) -> FixedBatch:
        """The sequences and their two views as one batch, all of it decided on the device.

        Args:
            batch: B sequences, none empty.
            seed: int64, 0-d, on the device.
            capacity: for the tokens of the 3 B sequences.
        """
        lengths, row = batch.offsets.diff(), batch.tail_rows()
        place = torch.arange(len(row), device=batch.device) - batch.offsets[row]
        items, starts, kept = [batch.items], [batch.offsets[:-1]], [lengths]
        for view, operators in enumerate(self._two(len(batch), seed, batch.device)):
            plan = self._plan(lengths, operators, seed, view)
            with_tail = F.pad(plan, (0, 1))  # a window of no items
            items.append(self._change(batch.items, row, place, with_tail, seed, view))
            begin, length = _kept(plan, lengths)
            starts.append(batch.offsets[:-1] + begin + len(row) * (view + 1))
            kept.append(length)
        values, all_starts, all_kept = torch.cat(items), torch.cat(starts), torch.cat(kept)
        return cut(values, all_starts, all_kept, capacity, batch.max_length)[0]

    def _two(self, count: int, seed: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two different operators for each of `count` sequences, int64 [B] each."""
        rows = torch.arange(count, device=device)
        first, second, *_ = philox.words(seed, STREAM_SEQUENCES, rows, 2)
        one = (first * 3) >> 32
        return one, (one + 1 + ((second * 2) >> 32)) % 3  # one of the two that are left

    def _apply(self, batch: JaggedBatch, operators: Tensor, seed: int, view: int) -> JaggedBatch:
        plan = self._plan(batch.lengths, operators, seed, view)
        on_device = to_device(plan.numpy(), batch.device)
        changed = self._change(batch.items, batch.rows(), batch.places(), on_device, seed, view)
        begin, kept = _kept(plan, batch.lengths)
        starts = batch.lengths.cumsum(0) - batch.lengths + begin
        return JaggedBatch(changed, batch.offsets, batch.lengths).cut(starts.numpy(), kept.numpy())

    def _plan(self, lengths: Tensor, operators: Tensor, seed: int | Tensor, view: int) -> Tensor:
        """Operator, begin and length of the window that each sequence is changed in: [3, B]."""
        real = lengths.double()
        masked = torch.where(operators == MASK, self.mask * real, self.reorder * real)
        share = torch.where(operators == CROP, self.crop * real, masked)
        window = (share + 1e-9).floor().long()  # .6 * 5 is 3, not 2.9999
        window = torch.where(operators == CROP, window.clamp(min=1), window)
        rows = torch.arange(len(lengths), device=lengths.device)
        draw = philox.words(seed, STREAM_SEQUENCES, rows, view)[0]
        begin = (draw * (lengths - window + 1)) >> 32
        return torch.stack((operators, begin, window))

    def _change(
        self, items: Tensor, row: Tensor, place: Tensor, plan: Tensor, seed: int | Tensor, view: int
    ) -> Tensor:
        """The items with the masks and the new orders in, nothing cropped yet: int64 [N].

        Args:
            items: int64 [N].
            row, place: int64 [N], the sequence each stands in, and where in it.
            plan: int64 [3, B] on the same device.
            seed, view: as for `apply`.
        """
        flat = torch.arange(len(row), device=items.device)
        operator, start, size = plan[:, row]
        number = philox.words(seed, STREAM_ITEMS, flat, view)[0]
        by_number = torch.argsort(number, stable=True)

        # mask: the items whose number is among the `size` smallest of their sequence
        order = by_number[torch.argsort(row[by_number], stable=True)]
        smaller = torch.empty_like(row)
        smaller[order] = place  # sequences stand in their own slots, so places count them up
        changed = torch.where((operator == MASK) & (smaller < size), self.mask_row, items)

        # reorder: all of a window fall on the slot of its first item, and go there by number
        inside = (operator == REORDER) & (place >= start) & (place < start + size)
        slot = flat - torch.where(inside, place - start, 0)
        return changed[by_number[torch.argsort(slot[by_number], stable=True)]]


def _kept(plan: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Where in its sequence a view begins, and its length: int64 [B] each."""
    operators, begin, window = plan
    cropped = operators == CROP
    return torch.where(cropped, begin, 0), torch.where(cropped, window, lengths)
