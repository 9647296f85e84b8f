"""The sequences that a contrastive method encodes in a step: the input, and two views of it.

A rule is a class with :meth:`Views.batch` and a value of `method.positive`:

* ``last``, ``random``: the input once more, and the input of another row with the same target, as
  in ICSRec, FENRec and the supervised form of DuoRec (Qiu et al., WSDM 2022);
* ``dropout``: the input twice more, the unsupervised form of DuoRec;
* ``augmented``: two copies of the input, cropped, masked or reordered, as in CL4SRec (Xie et al.,
  ICDE 2022).

Views of equal items differ by their dropout masks: no two sequences of a batch share one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import VIEWS
from seqrec.data.augment import Augmentation
from seqrec.data.fixed import FixedBatch, FixedRows
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.methods.base import FixedStep, Step
from seqrec.methods.positives import (
    FixedPositives,
    LastDiffering,
    Positives,
    RandomDiffering,
    same_target_rows,
)


class Views(Protocol):
    """Where the three sequences of a training row come from; rows are a store's prefixes."""

    def batch(self, rows: np.ndarray, step: Step) -> tuple[JaggedBatch, Tensor]:
        """The sequences and targets of these rows, assembled without waiting for the device.

        Args:
            rows: int64 [B], on the host.
            step: where in the run.

        Returns:
            One batch of 3 B sequences, the B inputs, the B first and the B second views; and the
            targets, int64 [B] on the device.
        """
        ...

    def tokens(self, epoch: int) -> np.ndarray:
        """The most tokens that the three sequences of each row have: int64 [rows], host."""
        ...

    def fixed_batch(
        self, rows: Tensor, capacity: int, step: FixedStep
    ) -> tuple[FixedBatch, Tensor]:
        """As `batch`, of rows on the device, in a buffer of fixed size."""
        ...


class SameTarget:
    """The input once more, and the input of another row with the same target.

    The first view differs from the input by its dropout masks alone.

    Args:
        store: its prefixes are the rows.
        config: `method.positive` is the rule that chooses the other row.
    """

    def __init__(self, store: SequenceStore, config: Config) -> None:
        self.store = store
        self.max_length = config.encoder.max_length
        targets, inputs = same_target_rows(store, self.max_length)
        self.positives: Positives = (
            RandomDiffering(targets, inputs, config.training.seed)
            if config.method.positive == "random"
            else LastDiffering(targets, inputs)
        )

    def batch(self, rows: np.ndarray, step: Step) -> tuple[JaggedBatch, Tensor]:
        all_rows = np.concatenate((rows, rows, self.positives.of(rows, step.epoch)))
        sequences, targets = self.store.prefix_batch(all_rows, self.max_length)
        return sequences, targets[: len(rows)]

    @cached_property
    def _fixed(self) -> tuple[FixedRows, FixedPositives]:
        known = FixedRows.prefixes(self.store, self.max_length)
        return known, self.positives.fixed(self.store.device)

    def tokens(self, epoch: int) -> np.ndarray:
        lengths = self._fixed[0].lengths
        return 2 * lengths + lengths[self.positives.of(np.arange(len(lengths)), epoch)]

    def fixed_batch(
        self, rows: Tensor, capacity: int, step: FixedStep
    ) -> tuple[FixedBatch, Tensor]:
        known, positives = self._fixed
        all_rows = torch.cat((rows, rows, positives(rows, step.epoch_tensor)))
        return known.batch(all_rows, capacity)[0], known.behind(rows)


class Repeated:
    """The input, three times.

    Args:
        store: its prefixes are the rows.
        config: `encoder.max_length` cuts them.
    """

    def __init__(self, store: SequenceStore, config: Config) -> None:
        self.store = store
        self.max_length = config.encoder.max_length

    def batch(self, rows: np.ndarray, step: Step) -> tuple[JaggedBatch, Tensor]:
        sequences, targets = self.store.prefix_batch(np.tile(rows, 3), self.max_length)
        return sequences, targets[: len(rows)]

    @cached_property
    def _fixed(self) -> FixedRows:
        return FixedRows.prefixes(self.store, self.max_length)

    def tokens(self, epoch: int) -> np.ndarray:
        return 3 * self._fixed.lengths

    def fixed_batch(
        self, rows: Tensor, capacity: int, step: FixedStep
    ) -> tuple[FixedBatch, Tensor]:
        return self._fixed.batch(rows.repeat(3), capacity)[0], self._fixed.behind(rows)


class Augmented:
    """The input, and two augmented copies of it.

    Args:
        store: its prefixes are the rows.
        config: `method.crop`, `.mask` and `.reorder` are the shares; the mask row is the last of
            the encoder's extra rows.
        n_items: size of the catalogue.
    """

    def __init__(self, store: SequenceStore, config: Config, n_items: int) -> None:
        self.store = store
        self.max_length = config.encoder.max_length
        self.seed = config.training.seed
        method = config.method
        mask_row = n_items + config.encoder.extra_rows - 1
        self.augmentation = Augmentation(method.crop, method.mask, method.reorder, mask_row)

    def batch(self, rows: np.ndarray, step: Step) -> tuple[JaggedBatch, Tensor]:
        inputs, targets = self.store.prefix_batch(rows, self.max_length)
        views = self.augmentation.views(inputs, step.seed(self.seed, VIEWS))
        return JaggedBatch.concatenated([inputs, *views]), targets

    @cached_property
    def _fixed(self) -> FixedRows:
        return FixedRows.prefixes(self.store, self.max_length)

    def tokens(self, epoch: int) -> np.ndarray:
        return 3 * self._fixed.lengths  # a view may be shorter than its input, never longer

    def fixed_batch(
        self, rows: Tensor, capacity: int, step: FixedStep
    ) -> tuple[FixedBatch, Tensor]:
        inputs, _ = self._fixed.batch(rows, capacity // 3)
        batch = self.augmentation.fixed_views(inputs, step.seed(self.seed, VIEWS), capacity)
        return batch, self._fixed.behind(rows)


def views_of(store: SequenceStore, config: Config, n_items: int) -> Views:
    """The views that `method.positive` names."""
    if config.method.positive == "augmented":
        return Augmented(store, config, n_items)
    if config.method.positive == "dropout":
        return Repeated(store, config)
    return SameTarget(store, config)
