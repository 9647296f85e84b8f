"""SASRec against sampled negatives: binary cross-entropy, BPR or a sampled softmax.

A training target p with the query q has the negatives n_1 .. n_K of `negatives.sampler`; with
a = q . E[p] and b_k = q . E[n_k] the loss of a row is

    bce      beta softplus(-a) + sum_k softplus(b_k)
    bpr      mean_k softplus(b_k - a)
    softmax  log(e^a + sum_k e^{b_k}) - a,  logits less log Q where the sampler has one

`sasrec-sampled` begins with the published SASRec's loss (one uniform negative, bce) and `r2ns` with
R2NS; they are this one class with other defaults.  beta is gSASRec's (Petrov and Macdonald, RecSys
2023): with alpha = K / (items - 1) the share of the negatives that is drawn, and the calibration t,

    beta = alpha (t (1 - 1/alpha) + 1/alpha),

1 for t = 0 (plain bce), and alpha for t = 1, which takes back all of the overconfidence that too
few negatives raise.

Negatives are ranked by the very queries of the loss, dropout included, without a gradient.  For the
first `warmup_epochs` they are uniform, whatever the sampler.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import NEGATIVES
from seqrec.data.store import Sequences, SequenceStore
from seqrec.methods.base import FixedStep, Step
from seqrec.methods.sasrec import NextItem
from seqrec.negatives import build_sampler
from seqrec.negatives.base import Question, Sampler
from seqrec.negatives.histories import Histories, Rows
from seqrec.negatives.uniform import Uniform
from seqrec_kernels import bce_loss, bpr_loss, sampled_softmax_loss


class Batch(NamedTuple):
    """B sequences and M targets: one of each sequence (prefixes), or one of each of its places."""

    inputs: Sequences
    targets: Tensor
    rows: Rows


class SampledMethod(NextItem):
    """SASRec with `config.method.loss` against the negatives of `config.negatives.sampler`."""

    seeds = ((NEGATIVES,),)

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__(config, n_items)
        self.settings = config.method
        self.seed = config.training.seed
        self.exclude = config.negatives.exclude
        self.sampler = build_sampler(config.negatives, config.method.warmup_epochs)
        self.warm = Uniform(config.negatives)
        self.beta = calibrated(config.method.calibration, config.negatives.count, n_items)
        self._histories: Histories | None = None  # follow from the training sequences

    @classmethod
    def not_captured(cls, config: Config) -> str | None:
        return None

    def prepare(self, store: SequenceStore) -> None:
        self._histories = Histories(store, len(self.encoder.table), self.exclude)
        self.warm.prepare(self._histories)
        self.sampler.prepare(self._histories)

    def batch(self, store: SequenceStore, rows: np.ndarray, step: Step) -> Batch:
        assert self._histories is not None, "prepare was not called"
        inputs, targets = self.pairs(store, rows)
        if self.prefixes:
            places = store.prefix_places(rows)
        else:
            places = store.target_places(store.trainable[rows], self.max_length)
        return Batch(inputs, targets, self._histories.rows(places))

    def fixed_batch(
        self, store: SequenceStore, rows: Tensor, capacity: int, step: FixedStep
    ) -> Batch:
        assert self._histories is not None, "prepare was not called"
        inputs, places = self.fixed_places(store, rows, capacity)
        targets = torch.where(places < 0, -1, store.values[places])
        return Batch(inputs, targets, self._histories.fixed_rows(places))

    def phase(self, epoch: int) -> str:
        return "warmup" if epoch < self.settings.warmup_epochs else "main"

    def loss(self, batch: Batch, step: Step | FixedStep) -> Tensor:
        queries, items = self.encoded(batch.inputs, step), self.encoder.table
        sampler = self._sampler(step.epoch)
        question = Question(
            queries.detach(),
            items.detach(),
            batch.targets,
            batch.rows,
            step.epoch_tensor if isinstance(step, FixedStep) else step.epoch,
            step.seed(self.seed, NEGATIVES),
        )
        table, negatives = sampler.classes(items, question, sampler.draw(question))
        if self.settings.loss == "bce":
            return bce_loss(queries, table, batch.targets, negatives, beta=self.beta)
        if self.settings.loss == "bpr":
            return bpr_loss(queries, table, batch.targets, negatives)
        return sampled_softmax_loss(queries, table, batch.targets, negatives, log_q=sampler.log_q())

    def weights(self) -> dict[str, Tensor]:
        """Without what the sampler remembers of the training."""
        state = self.state_dict()
        return {name: x for name, x in state.items() if not name.startswith("sampler.")}

    def facts(self, epoch: int) -> dict[str, int | float]:
        return self._sampler(epoch).facts(epoch)

    def _sampler(self, epoch: int) -> Sampler:
        return self.warm if self.phase(epoch) == "warmup" else self.sampler


def calibrated(t: float, count: int, n_items: int) -> float:
    """gSASRec's beta for `count` negatives in a catalogue of `n_items`."""
    alpha = count / max(n_items - 1, count)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)
