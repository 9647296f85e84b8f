"""What the trainer, the evaluation and ``recommend`` ask of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.config import Config
from seqrec.counters import derive
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.draws import Draws


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

    def seed(self, run: int, purpose: int, *numbers: int) -> int:
        """A seed of this very step: `derive` of the run's seed, a purpose, the step, numbers."""
        return derive(run, purpose, self.step, *numbers)


@dataclass(frozen=True)
class FixedStep:
    """A step that may be captured once and replayed as another: what changes stands in tensors.

    Args:
        epoch: from 0; only for what `Method.phase` tells apart.
        epoch_tensor: the same, int64, 0-d, on the training device.
        generator: what draws, on the training device.
        seeds: of what `Method.seeds` names, int64, 0-d, on the training device.
    """

    epoch: int
    epoch_tensor: Tensor
    generator: Draws
    seeds: Mapping[tuple[int, ...], Tensor]

    def seed(self, run: int, purpose: int, *numbers: int) -> Tensor:
        """As `Step.seed`, the same number, as a tensor."""
        return self.seeds[purpose, *numbers]


class Method(nn.Module, ABC):
    """A recommender that can be trained and asked for scores.

    The score of item v for a history is ``queries(history) . items()[v]``.

    A method whose step can be captured in a CUDA graph says so by :meth:`not_captured`, and has
    :meth:`tokens` and :meth:`fixed_batch`.  From the batch to the end of :meth:`loss` it then reads
    nothing of the device, and all shapes and numbers are the same in every step of a :meth:`phase`.

    Attributes:
        seeds: what `loss` and `fixed_batch` ask `FixedStep.seed` for: (purpose, *numbers) each.
    """

    seeds: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def not_captured(cls, config: Config) -> str | None:
        """Why a step cannot be captured in a CUDA graph, in a line; None: it can."""
        return "its batches are assembled on the host"

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

    def phase(self, epoch: int) -> str:
        """What the operators of a step depend on beside its shapes: "warmup" or "main"."""
        return "main"

    def tokens(self, store: SequenceStore, epoch: int) -> np.ndarray:
        """The most tokens that each training row brings into a batch: int64 [rows], host."""
        raise NotImplementedError

    def fixed_batch(
        self, store: SequenceStore, rows: Tensor, capacity: int, step: FixedStep
    ) -> Any:
        """As `batch`, all of it on the device and in buffers of a fixed size.

        Args:
            store: of the training sequences.
            rows: int64 [B], on the device.
            capacity: for the tokens; at least as many as `tokens` adds up to for these rows.
            step: where in the run.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, batch: Any, step: Step | FixedStep) -> Tensor:
        """Mean loss of the batch, a 0-d float32 tensor."""

    def facts(self, epoch: int) -> dict[str, int | float]:
        """What the run's log says of an epoch (from 0) beside its loss; nothing, unless overridden.

        Known on the host: a schedule's numbers, no measurement.
        """
        return {}

    def weights(self) -> dict[str, Tensor]:
        """What scoring needs, for ``model.safetensors``: all of the state, unless overridden."""
        return self.state_dict()

    @abstractmethod
    def queries(self, histories: JaggedBatch) -> Tensor:
        """[B, D], one query a history; for evaluation, without dropout."""

    @abstractmethod
    def items(self) -> Tensor:
        """[V, D], the table that queries are scored against."""
