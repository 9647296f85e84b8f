"""Whole training steps, each method's against the published one, padded and dense.

A step is: assemble the batch, draw views or negatives, encode, the losses, backward, Adam.  Both
sides start from the same weights, and only after their losses on the same rows and draws, without
dropout, agree is anything timed; the time is with the published dropout.  The rows are Beauty's
where the log is at hand, else a synthetic log's of its size; one is left out, for R2NS too, whose
paper splits by user.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from seqrec.methods.base import Step
from seqrec_kernels.backend import backend

from ._common import Case, benchmarked, implementations
from .training_step import SETTINGS, Ours, Rival, beauty, configured, prepared, step_of

# name of a setting, rows of a batch, phase
Shape = tuple[str, int, str]
SHAPES: dict[str, list[Shape]] = {
    "tiny": [(name, 8, "main") for name in SETTINGS],
    "paper": [
        ("sasrec_positions", 256, "main"),
        ("sasrec_prefixes", 256, "main"),
        ("r2ns", 1024, "warmup"),
        ("r2ns", 1024, "main"),
        ("cl4srec", 256, "main"),
        ("duorec", 256, "main"),
        ("icsrec", 256, "main"),
        ("fenrec", 256, "warmup"),
        ("fenrec", 256, "main"),
    ],
    "large": [("fenrec", 1024, "main")],
}
BATCHES = 8  # different ones, in turn
# every implementation of a step's operators that has this one stands beside what dispatch picks
OPERATOR = "catalog_cross_entropy"


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Both steps on the same few batches, each batch a step of training on."""
    name, size, phase = shape
    log, split = beauty()
    config = configured(name, training__batch=size)
    ours = prepared(config, split, device)
    rival = Rival(ours)
    batches = [ours.order[turn * size :][:size] for turn in range(BATCHES)]
    turns = {"ours": 0, "dense": 0}

    def step(turn: int) -> Step:
        return step_of(config, phase, device, turn)

    inputs = [rival.inputs(rows, step(0), handed=False) for rows in batches]

    def our_step() -> None:
        turn = turns["ours"] = turns["ours"] + 1
        ours.learn(ours.loss(batches[turn % BATCHES], step(turn)))

    def dense_step() -> None:
        turn = turns["dense"] = turns["dense"] + 1
        rival.learn(rival.loss(inputs[turn % BATCHES]))

    still = prepared(configured(name, encoder__dropout=0.0), split, device)

    @cache
    def right() -> float:
        """In float32, as it is timed."""
        plain = Rival(still)
        return float(plain.loss(plain.inputs(batches[0], step(0), handed=True)).detach())

    def gate(name: str) -> None:
        rivals[name]()
        if name != "dense":
            with contextlib.nullcontext() if name == "ours" else backend(name.split()[1]):
                loss = float(still.loss(batches[0], step(0)).detach())
            error = abs(loss - right()) / right()
            assert error < 1e-4, f"the loss is {loss}, the published {right()}"

    table = ours.method.encoder.table
    runs, rivals, left_out = implementations(OPERATOR, table, table, our_step)
    rivals["dense"] = dense_step
    return Case(
        f"{name}_step",
        f"{log} B={size} {phase}",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=operations(ours, batches, step(0)),
        bytes=16 * sum(p.numel() for p in ours.method.parameters()),
        steps=math.ceil(len(ours.order) / size),
    )


def operations(ours: Ours, batches: list[np.ndarray], step: Step) -> float:
    """Of the products that no step can leave out: each forward, and twice in the backward."""
    config, total = ours.config, 0.0
    width, layers = config.encoder.dim, config.encoder.layers
    layer = 24 if config.encoder.name == "sasrec-postnorm" else 12  # a token: times width^2
    everywhere = not getattr(ours.method, "prefixes", True)
    for rows in batches:
        sequences, targets, *_ = ours.method.batch(ours.store, rows, step)
        tokens, count = len(sequences.items), len(sequences)
        # the last layer needs no more than keys and values where it is not read
        last = layer * tokens if everywhere else 4 * tokens + (layer - 4) * count
        total += (layer * (layers - 1) * tokens + last) * width**2
        classes = 2 if config.method.name == "r2ns" else len(ours.method.encoder.table)
        total += 2 * len(targets) * classes * width
        terms = 1 if count == 3 * len(targets) else 0
        terms += 2 if getattr(ours.method, "intents", None) is not None else 0
        total += 2 * terms * (2 * len(targets)) ** 2 * width
    return 3 * total / len(batches)


@pytest.mark.parametrize("rival", ["ours", "seqrec blocked", "dense"])
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_training_step(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
