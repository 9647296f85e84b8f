"""SASRec trained with full-catalogue cross-entropy.

The published model with the loss that makes it a strong baseline (Klenitskiy and Vasilev, RecSys
2023): the softmax runs over the whole catalogue, in `catalog_cross_entropy`, which never holds the
``rows x catalogue`` logits.  Which Transformer it is, `encoder.name` says.

``method.rows`` says what a training row is:

* ``positions``: a user's sequence; every place predicts the next item (the last `max_length`
  places of it).
* ``prefixes``: one prefix of a sequence; only its last place predicts.  As many rows as there are
  targets, each encoded for itself: slower, and another optimisation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import WEIGHTS, derive
from seqrec.data.fixed import FixedBatch, FixedRows
from seqrec.data.store import JaggedBatch, Sequences, SequenceStore
from seqrec.encoders import build_encoder
from seqrec.methods.base import FixedStep, Method, Step
from seqrec_kernels import catalog_cross_entropy


class NextItem(Method):
    """An encoder that predicts next items; `config.method.rows` chooses the training rows."""

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive(config.training.seed, WEIGHTS))
        self.prefixes = config.method.rows == "prefixes"
        self.max_length = config.encoder.max_length
        self.encoder = build_encoder(n_items, config.encoder, generator)
        self._fixed: FixedRows | None = None  # follows from the training sequences

    def rows(self, store: SequenceStore) -> int:
        return store.n_prefixes if self.prefixes else len(store.trainable)

    def pairs(self, store: SequenceStore, rows: np.ndarray) -> tuple[JaggedBatch, Tensor]:
        """Input sequences and targets: [N] of them (positions) or [B] (prefixes)."""
        if self.prefixes:
            return store.prefix_batch(rows, self.max_length)
        return store.batch(store.trainable[rows], self.max_length + 1).shifted()

    def tokens(self, store: SequenceStore, epoch: int) -> np.ndarray:
        return self._fixed_rows(store).lengths

    def fixed_pairs(
        self, store: SequenceStore, rows: Tensor, capacity: int
    ) -> tuple[FixedBatch, Tensor]:
        """As `pairs`, on the device; a token of the tail has no target, -1."""
        inputs, places = self.fixed_places(store, rows, capacity)
        return inputs, torch.where(places < 0, -1, store.values[places])

    def fixed_places(
        self, store: SequenceStore, rows: Tensor, capacity: int
    ) -> tuple[FixedBatch, Tensor]:
        """As `fixed_pairs`, but where in the store's values the targets stand."""
        known = self._fixed_rows(store)
        inputs, places = known.batch(rows, capacity)
        if self.prefixes:
            return inputs, known.ends(rows)
        return inputs, torch.where(places < 0, -1, places + 1)

    def _fixed_rows(self, store: SequenceStore) -> FixedRows:
        if self._fixed is None:
            known = FixedRows.prefixes if self.prefixes else FixedRows.inputs
            self._fixed = known(store, self.max_length)
        return self._fixed

    def encoded(self, inputs: Sequences, step: Step | FixedStep) -> Tensor:
        """The queries of a batch's targets, under the step's dropout: [N, D] or [B, D]."""
        encode = self.encoder.last if self.prefixes else self.encoder.forward
        return encode(inputs, step.generator)

    def queries(self, histories: JaggedBatch) -> Tensor:
        return self.encoder.last(histories)

    def items(self) -> Tensor:
        return self.encoder.items


class SASRecMethod(NextItem):
    """SASRec against the whole catalogue."""

    def batch(
        self, store: SequenceStore, rows: np.ndarray, step: Step
    ) -> tuple[JaggedBatch, Tensor]:
        return self.pairs(store, rows)

    @classmethod
    def not_captured(cls, config: Config) -> str | None:
        return None

    def fixed_batch(
        self, store: SequenceStore, rows: Tensor, capacity: int, step: FixedStep
    ) -> tuple[FixedBatch, Tensor]:
        return self.fixed_pairs(store, rows, capacity)

    def loss(self, batch: tuple[Sequences, Tensor], step: Step | FixedStep) -> Tensor:
        inputs, targets = batch
        return catalog_cross_entropy(self.encoded(inputs, step), self.encoder.table, targets)
