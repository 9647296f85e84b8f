"""Batches in buffers of a fixed size, assembled where the sequences are.

A CUDA graph replays operators with the shapes they were captured with, and takes no arguments but
what stands in tensors.  So here the numbers of the rows come as a tensor, all index arithmetic
happens on the device, and the items go into a buffer of `capacity` tokens of which the batch fills
what it needs.  The rest, the *tail*, belongs to no sequence: `offsets` end before it.

The host knows all lengths, so it knows without asking the device how much the batches of an epoch
hold (:func:`capacity`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.data.store import Sequences, SequenceStore, to_device


@dataclass(frozen=True)
class FixedBatch(Sequences):
    """B sequences, none empty, in a buffer with a tail behind them.

    What is said of a token of the tail is finite and means nothing: its item is row 0, its sequence
    the last, its place inside the longest sequence there can be.

    Attributes:
        max_length: no sequence is longer.
    """

    max_length: int

    def rows(self) -> Tensor:
        return self.tail_rows().clamp(max=len(self) - 1)

    def places(self) -> Tensor:
        return super().places().clamp(max=self.max_length - 1)

    def places_from_end(self) -> Tensor:
        return super().places_from_end().clamp(min=0)

    def real(self) -> Tensor:
        """Which tokens belong to a sequence, bool [C]."""
        return self.tail_rows() < len(self)

    def tail_rows(self) -> Tensor:
        """The sequence every token stands in, int64 [C]; B in the tail."""
        flat = torch.arange(self.items.numel(), device=self.device)
        return torch.searchsorted(self.offsets[1:], flat, right=True)


def cut(
    values: Tensor, starts: Tensor, lengths: Tensor, capacity: int, max_length: int
) -> tuple[FixedBatch, Tensor]:
    """The pieces values[start:start + length] as a batch.

    Args:
        values: int64 [N].
        starts, lengths: int64 [B] on its device; lengths of 1 to `max_length`, whose sum is at
            most `capacity`.

    Returns:
        The batch, and for every token its place in `values`, int64 [capacity], -1 in the tail.
    """
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    flat = torch.arange(capacity, device=values.device)
    row = torch.searchsorted(offsets[1:], flat, right=True)
    shift = (starts - offsets[:-1])[row.clamp(max=len(lengths) - 1)]
    places = torch.where(row < len(lengths), flat + shift, -1)
    items = torch.where(places < 0, 0, values[places])
    return FixedBatch(items, offsets, max_length), places


class FixedRows:
    """Training rows of a store that know their place on the device.

    Row r is ``values[begins[r]:ends[r]]``, cut to its last `max_length` items.

    Args:
        store: of the sequences.
        begins, ends: int64 [rows], host; none empty.
        max_length: at least 1.

    Attributes:
        lengths: int64 [rows], host, after the cut.
    """

    def __init__(
        self, store: SequenceStore, begins: np.ndarray, ends: np.ndarray, max_length: int
    ) -> None:
        self.values = store.values
        self.max_length = max_length
        self.lengths = np.minimum(ends - begins, max_length)
        self._ends = to_device(ends, store.device)
        self._lengths = to_device(self.lengths, store.device)

    @staticmethod
    def prefixes(store: SequenceStore, max_length: int) -> FixedRows:
        """The rows of `SequenceStore.prefix_batch`; the item at a row's end is its target."""
        sequences, lengths = store.prefix_index()
        begins = store.offsets[sequences]
        return FixedRows(store, begins, begins + lengths, max_length)

    @staticmethod
    def inputs(store: SequenceStore, max_length: int) -> FixedRows:
        """The trainable sequences without their last items, the inputs of `JaggedBatch.shifted`."""
        begins, ends = store.offsets[:-1][store.trainable], store.offsets[1:][store.trainable]
        return FixedRows(store, begins, ends - 1, max_length)

    def batch(self, rows: Tensor, capacity: int) -> tuple[FixedBatch, Tensor]:
        """As :func:`cut`, of these rows: int64 [B] on the device."""
        lengths = self._lengths[rows]
        return cut(self.values, self._ends[rows] - lengths, lengths, capacity, self.max_length)

    def ends(self, rows: Tensor) -> Tensor:
        """Where in the store's values the item behind each row stands: int64 [B]."""
        return self._ends[rows]

    def behind(self, rows: Tensor) -> Tensor:
        """The item at each row's end, which follows its last: int64 [B]."""
        return self.values[self.ends(rows)]


def capacity(tokens: np.ndarray) -> int:
    """A buffer size for batches of these sizes, int64 [batches].

    The largest of them, rounded up to one of the 8 sizes there are between two powers of two: so
    the epochs of a run, whose largest batches differ by a few per cent, share a size or two.
    """
    most = int(tokens.max(initial=1))
    step = max(64, 1 << max(most.bit_length() - 4, 0))
    return -(-most // step) * step
