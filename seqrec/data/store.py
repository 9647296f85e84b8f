"""Training sequences on the training device, and batches cut from them without padding.

The device holds one flat item array. The host keeps the lengths: they alone decide every shape, so
a batch is assembled by index arithmetic and the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from seqrec.data.philox import permutation
from seqrec.data.split import Jagged


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which ``n`` rows are visited in ``epoch``: int64 [n], pure in all three."""
    return permutation(seed, epoch, n)


@dataclass(frozen=True)
class Sequences:
    """B sequences of different length as one flat tensor: what an encoder takes.

    Attributes:
        items: int64 [N] item rows on the device; sequence b is items[offsets[b]:offsets[b + 1]].
        offsets: int64 [B + 1] on the device.
    """

    items: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.items.device

    def rows(self) -> Tensor:
        """The sequence every item stands in, int64 [N] on the device."""
        raise NotImplementedError

    def places(self) -> Tensor:
        """Place of every item in its sequence, from 0, int64 [N] on the device."""
        flat = torch.arange(self.items.numel(), device=self.device)
        return flat - self.offsets[:-1][self.rows()]

    def places_from_end(self) -> Tensor:
        """How many items follow each in its sequence, int64 [N] on the device; the last has 0."""
        flat = torch.arange(self.items.numel(), device=self.device)
        return self.last()[self.rows()] - flat

    def last(self) -> Tensor:
        """Where in ``items`` each sequence has its last item, int64 [B]; none may be empty."""
        return self.offsets[1:] - 1


@dataclass(frozen=True)
class JaggedBatch(Sequences):
    """Sequences whose lengths the host knows; they fill `items`.

    Attributes:
        lengths: int64 [B] on the host, so that nobody asks the device for a shape.
    """

    lengths: Tensor

    @property
    def max_length(self) -> int:
        """Length of the longest sequence, a host int; 0 for an empty batch."""
        return int(self.lengths.max()) if len(self) else 0

    def rows(self) -> Tensor:
        return _rows(self.offsets.diff(), self.items.numel())

    @staticmethod
    def concatenated(batches: Sequence[JaggedBatch]) -> JaggedBatch:
        """The sequences of all `batches` as one batch, in order; at least one batch."""
        before = accumulate((batch.items.numel() for batch in batches), initial=0)
        offsets = [batch.offsets[1:] + n for batch, n in zip(batches, before, strict=False)]
        return JaggedBatch(
            torch.cat([batch.items for batch in batches]),
            torch.cat([batches[0].offsets[:1], *offsets]),
            torch.cat([batch.lengths for batch in batches]),
        )

    def padded(self, length: int | None = None, fill: int = 0) -> Tensor:
        """Left-aligned rows, int64 [B, length]; ``fill`` stands behind the end of a row.

        Args:
            length: width; ``max_length`` if not given. Longer rows keep their last items.
            fill: what to put into free places. Every item row is a real item, so whoever reads the
                result needs ``lengths`` too.
        """
        width = self.max_length if length is None else length
        dense = torch.full((len(self), width), fill, dtype=torch.int64, device=self.device)
        cut = self
        if width < self.max_length:
            lengths = self.lengths.numpy()
            kept = np.minimum(lengths, width)
            cut = _cut(self.items, np.cumsum(lengths) - kept, kept)[0]
        dense.view(-1)[cut.rows() * width + cut.places()] = cut.items
        return dense

    def cut(self, starts: np.ndarray, lengths: np.ndarray) -> JaggedBatch:
        """Pieces of this batch as a batch of their own.

        Args:
            starts: int64 [b], host, where each piece begins in ``items``.
            lengths: int64 [b], host, how many items it has.
        """
        return _cut(self.items, starts, lengths)[0]

    def shifted(self) -> tuple[JaggedBatch, Tensor]:
        """Inputs and targets of next-item prediction at every position.

        Returns:
            Every sequence without its last item, and int64 [N'] the item that follows each input.
            Sequences of fewer than two items have no such pair and are left out.
        """
        lengths = self.lengths.numpy()
        keep = lengths >= 2
        starts = np.cumsum(lengths) - lengths
        inputs, places = _cut(self.items, starts[keep], lengths[keep] - 1)
        return inputs, self.items[places + 1]


class SequenceStore:
    """Sequences of a log as one flat array on ``device``.

    Args:
        sequences: B rows of item rows, oldest first.
        device: where the batches are wanted.
    """

    def __init__(self, sequences: Jagged, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.offsets = np.ascontiguousarray(sequences.offsets, dtype=np.int64)
        self.values = torch.from_numpy(
            np.ascontiguousarray(sequences.values, dtype=np.int64).copy()
        ).to(self.device)

        first = np.zeros(len(sequences.values), dtype=bool)
        first[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        # the places that can be predicted from at least one item before them
        self._prefix_ends = np.flatnonzero(~first)
        # int64, host: the sequences that `JaggedBatch.shifted` finds a pair in
        self.trainable = np.flatnonzero(np.diff(self.offsets) >= 2)

    @property
    def n_sequences(self) -> int:
        """Stored sequences, the empty ones included."""
        return len(self.offsets) - 1

    @property
    def n_prefixes(self) -> int:
        """Prefixes of at least one item that an item follows, over all sequences."""
        return len(self._prefix_ends)

    def batch(self, rows: np.ndarray | Tensor, max_length: int) -> JaggedBatch:
        """The last ``max_length`` items of each of ``rows``.

        Args:
            rows: int64 [b], host numbers of stored sequences; may repeat.
            max_length: at least 1.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        ends = self.offsets[1:][chosen]
        lengths = np.minimum(ends - self.offsets[:-1][chosen], max_length)
        return _cut(self.values, ends - lengths, lengths)[0]

    def prefix_index(self) -> tuple[np.ndarray, np.ndarray]:
        """All prefixes: (sequence, length before any cut), int64 [n_prefixes] each, on the host."""
        # a prefix ends inside its sequence, never where one begins, so empty ones do not matter
        sequences = np.searchsorted(self.offsets, self._prefix_ends, side="right") - 1
        return sequences, self._prefix_ends - self.offsets[sequences]

    def prefix_places(self, numbers: np.ndarray) -> np.ndarray:
        """Where in ``values`` the item after each prefix stands: int64 [b], on the host."""
        return self._prefix_ends[numbers]

    def target_places(self, rows: np.ndarray, most: int) -> np.ndarray:
        """Where in ``values`` the targets of ``batch(rows, most + 1).shifted()`` stand, in order.

        Args:
            rows: int64 [b], host numbers of stored sequences.
            most: at least 1; targets of a sequence.

        Returns:
            int64 [N], on the host.
        """
        ends = self.offsets[1:][rows]
        counts = np.clip(ends - self.offsets[:-1][rows] - 1, 0, most)
        before = np.cumsum(counts) - counts
        return np.arange(counts.sum()) + np.repeat(ends - counts - before, counts)

    def prefix_batch(
        self, numbers: np.ndarray | Tensor, max_length: int
    ) -> tuple[JaggedBatch, Tensor]:
        """Prefixes and the item after each.

        Args:
            numbers: int64 [b] in [0, n_prefixes), host, in the order of ``prefix_index``.
            max_length: at least 1; a prefix keeps its last ``max_length`` items.

        Returns:
            The prefixes (b sequences) and their targets, int64 [b] on the device.
        """
        ends = self._prefix_ends[np.asarray(numbers, dtype=np.int64)]
        sequences = np.searchsorted(self.offsets, ends, side="right") - 1
        lengths = np.minimum(ends - self.offsets[sequences], max_length)
        inputs, _ = _cut(self.values, ends - lengths, lengths)
        return inputs, self.values[to_device(ends, self.device)]


def _cut(values: Tensor, starts: np.ndarray, lengths: np.ndarray) -> tuple[JaggedBatch, Tensor]:
    """The pieces values[start:start + length] as a batch, and the place in values of each item."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    # one copy to the device for everything that the host knows
    plan = to_device(np.concatenate((offsets, starts)), values.device)
    on_device, first = plan[: len(offsets)], plan[len(offsets) :]
    row = _rows(on_device.diff(), total)
    places = torch.arange(total, device=values.device) + (first - on_device[:-1])[row]
    return JaggedBatch(values[places], on_device, torch.from_numpy(lengths)), places


def _rows(lengths: Tensor, total: int) -> Tensor:
    """Row b repeated lengths[b] times; ``total`` spares the device being asked for the sum."""
    row = torch.arange(lengths.numel(), device=lengths.device)
    return torch.repeat_interleave(row, lengths, output_size=total)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A host array on the training device; nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    # only a pinned copy is asynchronous
    return tensor.pin_memory().to(device, non_blocking=True)
