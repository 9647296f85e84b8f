"""A whole training step of FENRec against the published one, padded and dense.

A step is: assemble the batch, encode the three views, cross-entropy and the three contrastive
terms, backward, Adam. Both sides start from the same weights, and only after their losses on the
same rows, without dropout, agree is anything timed; the time is with the published dropout.
The rows are Beauty's where the log is at hand, else a synthetic log's of its size.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec.config import Config, load_config
from seqrec.data.log import read_log
from seqrec.data.split import Split, split_log
from seqrec.data.store import SequenceStore
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.contrastive import ContrastiveMethod
from seqrec.methods.labels import label_items
from seqrec_kernels.backend import backend

from ._common import Case, benchmarked, implementations
from .dense_fenrec import DenseFENRec, Inputs

# rows of a batch, and the phase
Shape = tuple[int, str]
SHAPES: dict[str, list[Shape]] = {
    "tiny": [(8, "main")],
    "paper": [(256, "main"), (256, "warmup")],
    "large": [(1024, "main")],
}
SYNTHETIC = "synthetic:users=22363,items=12101,groups=100"
BATCHES = 8  # different ones, in turn


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


def published(dropout: float) -> Config:
    """The authors' setting for Beauty."""
    sets = {"encoder.dropout": dropout}
    return load_config("fenrec", preset="official-beauty", sets=sets, flags={"data.path": "-"})


class Ours(NamedTuple):
    """Our step, ready to run.

    Attributes:
        method: with the weights that move.
        store: of the training sequences.
        optimizer: Adam, as the trainer makes it.
        order: rows, shuffled.
    """

    method: ContrastiveMethod
    store: SequenceStore
    optimizer: torch.optim.Optimizer
    order: np.ndarray

    def rows(self, turn: int, size: int) -> np.ndarray:
        start = turn % BATCHES * size
        return self.order[start : start + size]

    def loss(self, rows: np.ndarray, step: Step) -> Tensor:
        return self.method.loss(self.method.batch(self.store, rows, step), step)

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def prepared(config: Config, device: str = "cpu") -> Ours:
    """Weights as drawn, clusters fitted once in few iterations: their number decides the time."""
    _, split = beauty()
    store = SequenceStore(split.train, device)
    method = build(config, split.n_items).to(device)
    assert isinstance(method, ContrastiveMethod) and method.intents is not None
    method.prepare(store)
    method.intents.iterations = method.intents.restarts = 1
    method.begin_epoch(store, 0, 0)
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=config.training.lr, weight_decay=0.0, fused=True
    )
    order = np.random.default_rng(0).permutation(method.rows(store))
    return Ours(method, store, optimizer, order)


def step_of(config: Config, phase: str, device: str, seed: int) -> Step:
    epoch = config.method.warmup_epochs if phase == "main" else 0
    return Step(epoch, seed, torch.Generator(device).manual_seed(seed))


class Dense:
    """The published step on the rows that ours is given, as the lists its data set holds."""

    def __init__(self, ours: Ours, phase: str, dropout: float) -> None:
        config, encoder = ours.method.config, ours.method.encoder
        self.ours, self.phase = ours, phase
        self.settings = config.method
        self.model = DenseFENRec(
            dict(encoder.named_parameters()),
            encoder.n_items,
            config.encoder.heads,
            dropout,
            config.method,
            torch.float32,
        )
        self.optimizer = torch.optim.Adam(self.model.weights.values(), lr=config.training.lr)
        self.windows = label_items(ours.store, config.method.label_place)

    def inputs(self, rows: np.ndarray, step: Step) -> Inputs:
        batch = self.ours.method.batch(self.ours.store, rows, step)
        sequences = batch.sequences.items.split(batch.sequences.lengths.tolist())
        lists = [sequence.tolist() for sequence in sequences]
        centroids = self.ours.method.get_buffer("intents.centroids")
        count = int(len(rows) * self.settings.noise)
        noise = torch.empty(count, centroids.shape[1], device=centroids.device)
        return Inputs(
            inputs=lists[: len(rows)],
            positives=lists[2 * len(rows) :],
            targets=batch.targets.tolist(),
            windows=[[item for item in row if item >= 0] for row in self.windows[rows].tolist()],
            centroids=centroids,
            noise=noise.normal_(generator=step.generator),
            main=self.phase == "main",
        )

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Both steps on the same few batches, each batch a step of training on."""
    size, phase = shape
    name, _ = beauty()
    config = published(dropout=0.5)
    ours = prepared(config, device)
    dense = Dense(ours, phase, dropout=0.5)
    lists = [
        dense.inputs(ours.rows(turn, size), step_of(config, phase, device, turn))
        for turn in range(BATCHES)
    ]
    turns = {"ours": 0, "dense": 0}

    def our_step() -> None:
        turn = turns["ours"] = turns["ours"] + 1
        ours.learn(ours.loss(ours.rows(turn, size), step_of(config, phase, device, turn)))

    def dense_step() -> None:
        turn = turns["dense"] = turns["dense"] + 1
        dense.learn(dense.model.loss(lists[turn % BATCHES]))

    still = prepared(published(dropout=0.0), device)

    @cache
    def right() -> float:
        """In float32, as it is timed."""
        plain = Dense(still, phase, dropout=0.0)
        rows = still.rows(0, size)
        inputs = plain.inputs(rows, step_of(config, phase, device, 0))
        return float(plain.model.loss(inputs).detach())

    def gate(rival: str) -> None:
        rivals[rival]()
        if rival != "dense":
            with contextlib.nullcontext() if rival == "ours" else backend(rival.split()[1]):
                loss = still.loss(still.rows(0, size), step_of(config, phase, device, 0))
            error = abs(float(loss.detach()) - right()) / right()
            assert error < 1e-4, f"the loss is {float(loss.detach())}, the published {right()}"

    table = ours.method.encoder.table
    runs, rivals, left_out = implementations("contrast", table, table, our_step)
    rivals["dense"] = dense_step
    tokens = sum(sum(map(len, (*one.inputs, *one.inputs, *one.positives))) for one in lists)
    width, places = table.shape[1], tokens / BATCHES
    return Case(
        "fenrec_step",
        f"{name} B={size} {phase}",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        # three products of: the first layer whole, keys and values of the last, logits, z z^T
        operations=3
        * (28 * places * width**2 + 20 * 3 * size * width**2 + 2 * size * table.numel())
        + 3 * 6 * (2 * size) ** 2 * width,
        bytes=16 * sum(p.numel() for p in ours.method.parameters()),
    )


@pytest.mark.parametrize("rival", ["ours", "seqrec blocked", "dense"])
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_fenrec_step(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
