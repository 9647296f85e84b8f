"""The sequences that a contrastive method encodes in a step: the input, and two views of it.

Other views (augmentations, say) are another class with :meth:`Views.batch`, and a value of
`method.positive`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from seqrec.config import Config
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.methods.base import Step
from seqrec.methods.positives import LastDiffering, Positives, RandomDiffering, same_target_rows


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
