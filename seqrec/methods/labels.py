"""Soft labels over the next items of a sequence (FENRec, Huang et al., AAAI 2025).

A row's target y stands in a training sequence F.  Its label spreads over the window of y and the
two items behind it, cut at the end of F, so that no held-out item is ever in it.  Of n items the
k-th has the weight

    w_k = gamma^k / (1 + ... + gamma^(n - 1)),   k = 0 .. n - 1,   with 0^0 = 1

and the weights of an item that stands in the window twice add up.  gamma = 0 is the hard label.

The window begins at the target's own place (``own``), or where the sequence has the target for the
first time (``first``, as the published code looks it up; the two differ where a user comes back to
an item).  A label is kept as its at most three items: `catalog_cross_entropy` needs no dense one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqrec.data.store import SequenceStore

REACH = 3  # items in a window; fixed in the published code


class SoftLabels:
    """The labels of all training rows of a store.

    Args:
        store: its prefixes are the rows.
        gamma: decay, in [0, 1).
        place: "own" or "first", where a window begins.
    """

    def __init__(self, store: SequenceStore, gamma: float, place: str) -> None:
        self._items = torch.from_numpy(label_items(store, place)).to(store.device)
        self._weights = label_weights(gamma).to(store.device)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Targets int64 [B, 3], -1 behind the window's end, and weights float32 [B, 3].

        Args:
            rows: int64 [B] on the store's device.
        """
        items = self._items[rows]
        filled = (items >= 0).sum(1)
        return items.to(torch.int64), self._weights[filled - 1]


def label_items(store: SequenceStore, place: str) -> np.ndarray:
    """The window of every prefix, int32 [n_prefixes, 3] on the host; -1 behind its end."""
    values = store.values.cpu().numpy()
    sequences, lengths = store.prefix_index()
    begins = store.offsets[sequences] + lengths
    if place == "first":
        begins = _first_places(values, store.offsets)[begins]
    places = begins[:, None] + np.arange(REACH)
    inside = places < store.offsets[1:][sequences][:, None]
    items = values[np.minimum(places, len(values) - 1)]
    return np.where(inside, items, -1).astype(np.int32)


def label_weights(gamma: float) -> Tensor:
    """float32 [3, 3]: row n - 1 holds the weights of a window of n items."""
    decay = np.power(gamma, np.arange(REACH))  # 0.0 ** 0 is 1
    weights = np.tril(np.ones((REACH, REACH))) * decay
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(torch.float32)


def _first_places(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where the item of each place stands for the first time in the place's sequence."""
    sequence = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    width = int(values.max(initial=0)) + 1
    _, first, kind = np.unique(sequence * width + values, return_index=True, return_inverse=True)
    return first[kind]
