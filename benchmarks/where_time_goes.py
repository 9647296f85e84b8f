"""Where the time of a training step and of an epoch goes, part by part.

python -m benchmarks.where_time_goes METHOD... [--precision bfloat16] [--rounds 9] [--out FILE]

METHOD is sasrec (positions, width 64, the defaults else), fenrec or r2ns (the authors' settings).
Each part is run by itself on what the step hands it, backward included, in one thread; the parts in
turn, round after round. The whole step is timed beside them, and so is what an epoch has around its
steps. On Beauty, or on a synthetic log of its size where Beauty is not at hand.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.data.store import SequenceStore
from seqrec.evaluation.ranking import Evaluator
from seqrec.methods.base import Method, Step
from seqrec_kernels import bce_loss, catalog_cross_entropy

from ._common import interleaved
from ._machine import one_thread, surroundings
from .training_step import beauty, configured, drawn, update

Part = Callable[[], object]
FORWARD, BACKWARD = "encoder, forward", "encoder, backward"


class Work(NamedTuple):
    """A method in the midst of its training.

    Attributes:
        config, method, store: of the run; weights as drawn.
        rows: int64, of one batch.
        optimizer: as the trainer makes it.
        narrow: whether products are of bfloat16.
    """

    config: Config
    method: Any
    store: SequenceStore
    rows: np.ndarray
    optimizer: torch.optim.Optimizer
    narrow: bool

    def step(self) -> Step:
        epoch = self.config.method.warmup_epochs  # the method's own loss or sampler has begun
        return Step(epoch, 0, torch.Generator().manual_seed(0))

    def products(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.narrow)

    def loss(self) -> Tensor:
        step = self.step()
        batch = self.method.batch(self.store, self.rows, step)
        with self.products():
            found: Tensor = self.method.loss(batch, step)
        return found

    def learn(self) -> None:
        update(self.optimizer, self.config.training.clip_norm)

    def whole(self) -> None:
        self.loss().backward()
        self.learn()


def prepared(name: str, narrow: bool) -> Work:
    _, split = beauty()
    ours = drawn(configured("sasrec_positions" if name == "sasrec" else name), split)
    rows = ours.order[: ours.config.training.batch]
    return Work(ours.config, ours.method, ours.store, rows, ours.optimizer, narrow)


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def parts_of(work: Work) -> dict[str, Part]:
    """The parts of a step, by name; the encoder's two are forward, and forward and backward."""
    method, store = work.method, work.store
    batch = method.batch(store, work.rows, work.step())
    inputs = batch.sequences if hasattr(batch, "sequences") else batch[0]
    positions = getattr(method, "prefixes", True) is False

    def encode() -> Tensor:
        with work.products():
            of = method.encoder.forward if positions else method.encoder.last
            found: Tensor = of(inputs, work.step().generator)
        return found

    def learn() -> None:
        for parameter in method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        work.learn()

    hidden = encode().detach()
    upstream = torch.randn_like(hidden)
    of_loss = {"fenrec": contrastive, "r2ns": sampled, "sasrec": full_softmax}
    return {
        "batch": lambda: method.batch(store, work.rows, work.step()),
        FORWARD: encode,
        BACKWARD: lambda: encode().backward(upstream),
        **of_loss[work.config.method.name](work, batch, hidden),
        "clipping, Adam" if work.config.training.clip_norm else "Adam": learn,
    }


def full_softmax(work: Work, batch: Any, hidden: Tensor) -> dict[str, Part]:
    queries, table = leaf(hidden), work.method.encoder.table

    def entropy() -> None:
        with work.products():
            loss = catalog_cross_entropy(queries, table, batch[1])
        loss.backward()

    return {"cross-entropy": entropy}


def sampled(work: Work, batch: Any, hidden: Tensor) -> dict[str, Part]:
    from seqrec.negatives.base import Question

    method, queries, table = work.method, leaf(hidden), work.method.encoder.table
    epoch = work.step().epoch
    question = Question(hidden, table.detach(), batch.targets, batch.rows, epoch, 0)
    negatives = method._sampler(epoch).draw(question)

    def entropy() -> None:
        with work.products():
            loss = bce_loss(queries, table, batch.targets, negatives, beta=method.beta)
        loss.backward()

    def draw() -> None:
        with work.products():
            method._sampler(epoch).draw(question)

    return {"negatives, drawn": draw, "binary cross-entropy": entropy}


def contrastive(work: Work, batch: Any, hidden: Tensor) -> dict[str, Part]:
    method, step, table = work.method, work.step(), work.method.encoder.table
    queries, first, second = (leaf(x) for x in hidden.chunk(3))
    noise = method._noise(first, second, batch.targets, step.generator)
    unit = method.intents.unit()
    clusters = [method.intents.nearest(view.detach()) for view in (first, second)]

    def entropy() -> None:
        with work.products():
            loss = catalog_cross_entropy(queries, table, *batch.labels)
        loss.backward()

    def term(x: Tensor, y: Tensor, labels: Tensor) -> None:
        with work.products():
            loss = method._contrast(x, y, labels, noise, True, step, 0)
        loss.backward()

    return {
        "cross-entropy, soft labels": entropy,
        "noise, drawn and moved": lambda: method._noise(
            first, second, batch.targets, step.generator
        ),
        "coarse term": lambda: term(first, second, batch.targets),
        "nearest clusters, 2 views": lambda: [
            method.intents.nearest(view.detach()) for view in (first, second)
        ],
        "fine terms, 2 views": lambda: [
            term(view, unit[cluster], cluster)
            for view, cluster in zip((first, second), clusters, strict=True)
        ],
    }


def around(work: Work) -> dict[str, float]:
    """Thread seconds of what an epoch does around its steps."""
    _, split = beauty()
    method: Method = work.method
    evaluation = work.config.evaluation
    found = {}
    if getattr(method, "intents", None) is not None:
        with work.products():
            points, found["encoding all rows"] = timed(lambda: work.method.encoded(work.store))
        fit = work.method.intents.fit
        _, found["k-means, from random points"] = timed(lambda: fit(points, 0, warm=False))
    evaluator = Evaluator(
        split.valid, work.config.encoder.max_length, work.store.device, evaluation.batch
    )
    _, found["validation"] = timed(lambda: evaluator.ranks(method, [evaluation.seen]))
    return found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.thread_time()
    return call(), time.thread_time() - begun


def table(title: str, parts: dict[str, float], whole: float, digits: int) -> list[str]:
    lines = [f"{title:<32} {'':>8} {'share':>6}"]
    for name, part in sorted(parts.items(), key=lambda entry: -entry[1]):
        lines.append(f"{name:<32} {part:8.{digits}f} {part / whole:6.1%}")
    return [*lines, f"{'together':<32} {whole:8.{digits}f} {1:6.1%}"]


def measured(name: str, narrow: bool, rounds: int) -> list[str]:
    """The two tables of a method."""
    work = prepared(name, narrow)
    with one_thread():
        before = around(work)  # first: the clusters are fitted here
        times, _ = interleaved({**parts_of(work), "whole": work.whole}, "cpu", rounds)
    parts = {part: statistics.median(found) for part, found in times.items()}
    parts[BACKWARD] -= parts[FORWARD]
    whole = parts.pop("whole")
    parts["between the parts"] = whole - sum(parts.values())
    steps = math.ceil(work.method.rows(work.store) / len(work.rows))
    seconds = {f"{steps} steps": steps * whole / 1e3, **before}
    size = f"{name}, {beauty()[0]}, B={len(work.rows)}, {'bfloat16' if narrow else 'float32'}"
    return [
        *table(f"{size}: ms a step", parts, whole, 2),
        "",
        *table("s an epoch, one thread", seconds, sum(seconds.values()), 2),
        "",
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where_time_goes")
    parser.add_argument("methods", nargs="+", choices=("sasrec", "fenrec", "r2ns"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="kept there too, added to what there is")
    options = parser.parse_args(arguments)
    machine = surroundings()
    lines = [
        f"$ python -m benchmarks.where_time_goes {' '.join(arguments)}",
        f"commit {machine['commit']}, one thread of {machine['processor']}, CPU time, median of "
        f"{options.rounds} rounds",
        "",
    ]
    for name in options.methods:
        lines += measured(name, options.precision == "bfloat16", options.rounds)
    text = "\n".join(lines)
    print(text, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as stream:
            stream.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
