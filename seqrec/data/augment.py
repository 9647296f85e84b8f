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

from seqrec.data.philox import STREAM_ITEMS, STREAM_SEQUENCES, words
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
        rows = np.arange(len(batch))
        first, second, *_ = words(seed, STREAM_SEQUENCES, rows, 2)
        one = (first * 3) >> 32
        other = (one + 1 + ((second * 2) >> 32)) % 3  # one of the two that are left
        return self.apply(batch, one, seed, 0), self.apply(batch, other, seed, 1)

    def apply(self, batch: JaggedBatch, operators: np.ndarray, seed: int, view: int) -> JaggedBatch:
        """One operator a sequence.

        Args:
            batch: B sequences, none empty.
            operators: [B], each CROP, MASK or REORDER, on the host.
            seed: of this very batch.
            view: keeps the draws of two views apart.
        """
        lengths = batch.lengths.numpy()
        share = np.choose(operators, (self.crop, self.mask, self.reorder))
        window = np.floor(share * lengths + 1e-9).astype(np.int64)  # .6 * 5 is 3, not 2.9999
        window = np.where(operators == CROP, np.maximum(window, 1), window)
        draw = words(seed, STREAM_SEQUENCES, np.arange(len(batch)), view)[0]
        begin = (draw * (lengths - window + 1)) >> 32
        changed = self._change(batch, operators, begin, window, seed, view)

        cropped = operators == CROP
        kept = np.where(cropped, window, lengths)
        starts = np.cumsum(lengths) - lengths + np.where(cropped, begin, 0)
        return JaggedBatch(changed, batch.offsets, batch.lengths).cut(starts, kept)

    def _change(
        self,
        batch: JaggedBatch,
        operators: np.ndarray,
        begin: np.ndarray,
        window: np.ndarray,
        seed: int,
        view: int,
    ) -> Tensor:
        """The items with the masks and the new orders in, nothing cropped yet: int64 [N]."""
        device = batch.device
        plan = to_device(np.stack((operators, begin, window)), device)
        row, place = batch.rows(), batch.places()
        operator, start, size = plan[:, row]
        number = philox.words(seed, STREAM_ITEMS, torch.arange(len(row), device=device), view)[0]
        by_number = torch.argsort(number, stable=True)

        # mask: the items whose number is among the `size` smallest of their sequence
        order = by_number[torch.argsort(row[by_number], stable=True)]
        smaller = torch.empty_like(row)
        smaller[order] = place  # sequences stand in their own slots, so places count them up
        items = torch.where((operator == MASK) & (smaller < size), self.mask_row, batch.items)

        # reorder: all of a window fall on the slot of its first item, and go there by number
        inside = (operator == REORDER) & (place >= start) & (place < start + size)
        slot = torch.arange(len(row), device=device) - torch.where(inside, place - start, 0)
        return items[by_number[torch.argsort(slot[by_number], stable=True)]]
