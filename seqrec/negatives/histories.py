"""What the user of every training target has met: the items that are no negatives of it.

A target is a place of the flat array of training sequences.  Under ``history`` the user has met the
distinct items up to it, the target included; under ``sequence`` all of the training sequence.  A
sequence's distinct items stand in the order in which they are first met, so either set is the
beginning of that list: its length says it all, and one table serves every prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.data.fixed import cut
from seqrec.data.store import JaggedBatch, SequenceStore, to_device
from seqrec_kernels import SeenItems


class Rows(NamedTuple):
    """M targets.

    Attributes:
        places: int64 [M], where in the store's flat array they stand.
        sequences: int64 [M], in which sequence.
        met: int64 [M], how many distinct items their users have met.
        seen: those items, a row a target.
    """

    places: Tensor
    sequences: Tensor
    met: Tensor
    seen: SeenItems


class Histories:
    """The distinct items of all training sequences, in the order in which they are first met.

    Args:
        store: of the training sequences.
        n_items: R, rows of the item table that may be drawn.
        exclude: ``history`` or ``sequence``.

    Attributes:
        store: of the training sequences.
        novel: int64 [nnz] on the device, the lists one after the other.
        starts: int64 [U + 1] on the host, where each begins.
        item_counts: int64 [R] on the host, how often each item stands in the sequences.
    """

    def __init__(self, store: SequenceStore, n_items: int, exclude: str = "history") -> None:
        self.store, self.device = store, store.device
        self.n_items = n_items
        values = store.values.cpu().numpy()
        self._sequences = np.repeat(np.arange(store.n_sequences), np.diff(store.offsets))
        first = np.unique(self._sequences * n_items + values, return_index=True)[1]
        novel = np.zeros(len(values), dtype=bool)
        novel[first] = True
        counts = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(novel, out=counts[1:])
        self.starts = counts[store.offsets]
        ends = counts[1:] if exclude == "history" else self.starts[1:][self._sequences]
        self._met = ends - self.starts[:-1][self._sequences]
        self.novel = store.values[to_device(np.flatnonzero(novel), store.device)]
        self.item_counts = np.bincount(values, minlength=n_items)
        self._lists = JaggedBatch(
            self.novel,
            to_device(self.starts, store.device),
            torch.from_numpy(np.diff(self.starts)),
        )

        # the same on the device, and how much the lists of so many targets hold at most
        known = np.stack((self._sequences, self._met, self.starts[self._sequences]))
        self._known = to_device(known, store.device)
        self._most = np.cumsum(np.sort(self._met)[::-1])

    def fixed_rows(self, places: Tensor) -> Rows:
        """As `rows`, on the device and in buffers of a fixed size.

        Args:
            places: int64 [M] on the device; what is said of a target at -1 means nothing.
        """
        sequences, met, starts = self._known[:, places.clamp(min=0)]
        most = int(self._most[min(len(places), len(self._most)) - 1])
        lists, _ = cut(self.novel, starts, met, most, most)
        return Rows(places, sequences, met, SeenItems(lists.offsets, lists.items))

    def rows(self, places: np.ndarray) -> Rows:
        """The targets at these places: int64 [M] on the host."""
        sequences, met = self._sequences[places], self._met[places]
        place, sequence, known = to_device(np.stack((places, sequences, met)), self.device)
        lists = self._lists.cut(self.starts[sequences], met)
        return Rows(place, sequence, known, SeenItems(lists.offsets, lists.items))
