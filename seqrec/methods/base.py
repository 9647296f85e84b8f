"""What the trainer, the evaluation and ``recommend`` ask of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.data.store import JaggedBatch, SequenceStore


@dataclass(frozen=True)
class Step:
    """Where in the run a batch or its loss is asked for, and the random numbers of the loss.

    Args:
        epoch: from 0.
        step: training steps done before this one, over all epochs.
        generator: on the training device, seeded for this very step.
    """

    epoch: int
    step: int
    generator: torch.Generator


class Method(nn.Module, ABC):
    """A recommender that can be trained and asked for scores.

    The score of item v for a history is ``queries(history) . items()[v]``.
    """

    @abstractmethod
    def rows(self, store: SequenceStore) -> int:
        """Training rows an epoch shuffles and cuts into batches."""

    def prepare(self, store: SequenceStore) -> None:
        """Called once before training, also before a resumed one; nothing, unless overridden.

        Tables that follow from the store and the configuration are made here; they are not saved.
        """

    def begin_epoch(self, store: SequenceStore, epoch: int, seed: int) -> None:
        """What has to be done before the first step of an epoch; nothing, unless overridden.

        It is not called again where a run is resumed inside an epoch: what the steps need of it
        must be in buffers of this module, which are saved.

        Args:
            store: of the training sequences.
            epoch: from 0.
            seed: for this very epoch.
        """

    @abstractmethod
    def batch(self, store: SequenceStore, rows: np.ndarray, step: Step) -> Any:
        """The batch of these rows, on the training device, assembled without waiting for it.

        Args:
            store: of the training sequences.
            rows: int64 [B], on the host.
            step: where in the run; what is drawn here is a function of it and of the run's seed.
        """

    @abstractmethod
    def loss(self, batch: Any, step: Step) -> Tensor:
        """Mean loss of the batch, a 0-d float32 tensor."""

    def facts(self, epoch: int) -> dict[str, int | float]:
        """What the run's log says of an epoch (from 0) beside its loss; nothing, unless overridden.

        Known on the host: a schedule's numbers, no measurement.
        """
        return {}

    @abstractmethod
    def queries(self, histories: JaggedBatch) -> Tensor:
        """[B, D], one query a history; for evaluation, without dropout."""

    @abstractmethod
    def items(self) -> Tensor:
        """[V, D], the table that queries are scored against."""
