"""Ours and the published form of a training step, on the same rows and the same weights.

`Ours` is a method in training.  `Rival` is the published step (`dense_contrastive`, `dense_sasrec`)
on a copy of its weights, and gets what ours takes from its batch as the lists that a published data
set holds.  The benchmark times the two, and the tests hold them against each other in float64.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config, load_config
from seqrec.counters import NEGATIVES
from seqrec.data.log import read_log
from seqrec.data.split import Split, split_log
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.draws import normal
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.contrastive import ContrastiveMethod
from seqrec.methods.sampled import SampledMethod
from seqrec.negatives.base import Question

from . import dense_contrastive, dense_sasrec
from .dense_contrastive import DenseContrastive
from .dense_encoder import DenseEncoder
from .dense_sasrec import DenseR2NS, DenseSASRec

SYNTHETIC = "synthetic:users=22363,items=12101,groups=100"

# what is timed, by the name of its case: method, preset (None: our defaults) and what differs
SETTINGS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "sasrec_positions": ("sasrec", None, {"encoder.dim": 64}),
    "sasrec_prefixes": ("sasrec", "official-beauty", {}),
    "r2ns": ("r2ns", "official-beauty", {"data.split": "leave-one-out"}),
    "cl4srec": ("cl4srec", None, {}),
    "duorec": ("duorec", None, {}),
    "icsrec": ("icsrec", "official-beauty", {}),
    "fenrec": ("fenrec", "official-beauty", {}),
}


@cache
def beauty() -> tuple[str, Split]:
    """Beauty below ``$SEQREC_SHARED`` or beside the repository, or a log of its size."""
    root = Path(os.environ.get("SEQREC_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    packed = root / "data" / "seq" / "Beauty.txt.xz"
    if not packed.is_file():
        return SYNTHETIC, split_log(read_log(SYNTHETIC))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Beauty.txt"
        path.write_bytes(lzma.decompress(packed.read_bytes()))
        return "Beauty", split_log(read_log(str(path)))


def configured(name: str, **sets: Any) -> Config:
    """The setting that goes by `name`; `table__key=value` changes it."""
    method, preset, asked = SETTINGS[name]
    asked = asked | {key.replace("__", "."): value for key, value in sets.items()}
    return load_config(method, preset=preset, sets=asked, flags={"data.path": "-"})


def step_of(config: Config, phase: str, device: str, seed: int) -> Step:
    """A step before or after the warm-up: `phase` is "warmup" or "main"."""
    epoch = config.method.warmup_epochs if phase == "main" else 0
    return Step(epoch, seed, torch.Generator(device).manual_seed(seed))


def learn(loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """What follows a loss, on either side."""
    loss.backward()
    update(optimizer, clip_norm)


def update(optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """What follows the gradients."""
    if clip_norm > 0:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    optimizer.zero_grad()


class Ours(NamedTuple):
    """Our step, ready to run.

    Attributes:
        config: of the run.
        method: with the weights that move.
        store: of the training sequences.
        optimizer: Adam, as the trainer makes it.
        order: rows, shuffled.
    """

    config: Config
    method: Any
    store: SequenceStore
    optimizer: torch.optim.Optimizer
    order: np.ndarray

    def loss(self, rows: np.ndarray, step: Step) -> Tensor:
        loss: Tensor = self.method.loss(self.method.batch(self.store, rows, step), step)
        return loss

    def learn(self, loss: Tensor) -> None:
        learn(loss, self.optimizer, self.config.training.clip_norm)


def drawn(config: Config, split: Split, device: str = "cpu") -> Ours:
    """Weights as drawn; clusters, where there are any, not fitted yet."""
    store = SequenceStore(split.train, device)
    method = build(config, split.n_items).to(device)
    method.prepare(store)
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=config.training.lr, weight_decay=0.0, fused=True
    )
    order = np.random.default_rng(0).permutation(method.rows(store))
    return Ours(config, method, store, optimizer, order)


def prepared(config: Config, split: Split, device: str = "cpu") -> Ours:
    """Weights as drawn, clusters fitted once in few iterations: their number decides the time."""
    ours = drawn(config, split, device)
    method = ours.method
    if isinstance(method, ContrastiveMethod) and method.intents is not None:
        method.intents.iterations = method.intents.restarts = 1
    method.begin_epoch(ours.store, 0, 0)
    return ours


class Rival:
    """The published step beside ours.

    Args:
        ours: whose weights are copied, and whose batches say what there is to learn.
        dtype: of the copy.
    """

    def __init__(self, ours: Ours, dtype: torch.dtype = torch.float32) -> None:
        self.ours, config = ours, ours.config
        self.encoder = DenseEncoder(ours.method.encoder, config.encoder, dtype)
        self.optimizer = torch.optim.Adam(self.encoder.weights.values(), lr=config.training.lr)
        self.model: Any
        if isinstance(ours.method, ContrastiveMethod):
            mask_row = len(self.encoder.table) - 1
            self.model = DenseContrastive(self.encoder, config.method, mask_row)
        elif isinstance(ours.method, SampledMethod):
            self.model = DenseR2NS(self.encoder, config.negatives)
        else:
            self.model = DenseSASRec(self.encoder, ours.method.prefixes)

    def loss(self, inputs: Any) -> Tensor:
        loss: Tensor = self.model.loss(inputs)
        return loss

    def learn(self, loss: Tensor) -> None:
        learn(loss, self.optimizer, self.ours.config.training.clip_norm)

    def inputs(self, rows: np.ndarray, step: Step, handed: bool) -> Any:
        """What a step learns from.

        Args:
            rows: of an epoch, int64, host.
            step: where in the run.
            handed: with the very views and negatives that our step draws; else the published step
                draws its own, as it does in training.
        """
        method = self.ours.method
        batch = method.batch(self.ours.store, rows, step)
        if isinstance(method, ContrastiveMethod):
            return self._views(batch, step, handed)
        if isinstance(method, SampledMethod):
            return self._sampled(batch, step, handed)
        inputs, targets = batch
        return dense_sasrec.Inputs(lists(inputs), targets.tolist())

    def _views(self, batch: Any, step: Step, handed: bool) -> dense_contrastive.Inputs:
        method, settings = self.ours.method, self.ours.config.method
        main = method.phase(step.epoch) == "main"
        count = int(len(batch.targets) * settings.noise) if main else 0
        if count > 0:  # the generator draws dropout before the noise
            method.encoder.last(batch.sequences, step.generator)
        sequences, size = lists(batch.sequences), len(batch.targets)
        views = sequences[size : 2 * size], sequences[2 * size :]
        labels = None if batch.labels is None else batch.labels[0].tolist()
        width, device = self.encoder.table.shape[1], self.encoder.table.device
        return dense_contrastive.Inputs(
            rows=sequences[:size],
            views=views if handed or settings.positive != "augmented" else None,
            targets=batch.targets.tolist(),
            windows=labels and [[item for item in row if item >= 0] for row in labels],
            centroids=None if method.intents is None else method.intents.centroids,
            noise=normal(count, width, step.generator, device) if count else None,
            main=main,
        )

    def _sampled(self, batch: Any, step: Step, handed: bool) -> dense_sasrec.Inputs:
        method, main = self.ours.method, self.ours.method.phase(step.epoch) == "main"
        seen = batch.rows.seen
        met = JaggedBatch(seen.ids, seen.offsets, seen.offsets.diff())
        inputs = dense_sasrec.Inputs(
            rows=lists(batch.inputs),
            targets=batch.targets.tolist(),
            met=lists(met),
            top_m=method.facts(step.epoch)["top_m"] if main else 0,
        )
        if not handed:
            return inputs
        queries = method.encoded(batch.inputs, step).detach()
        seed = step.seed(method.seed, NEGATIVES)
        table = method.encoder.table.detach()
        question = Question(queries, table, batch.targets, batch.rows, step.epoch, seed)
        drawn = (method.sampler if main else method.warm).draw(question)
        return dataclasses.replace(inputs, negatives=drawn[:, 0])


def lists(batch: JaggedBatch) -> list[list[int]]:
    """The sequences of a batch."""
    return [part.tolist() for part in batch.items.split(batch.lengths.tolist())]
