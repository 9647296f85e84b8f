"""Where the time of a training step goes, part by part.

python -m benchmarks.where_time_goes fenrec [--batch 256] [--rounds 15]

Each part is run by itself on what the step hands it, backward included, in one thread; the parts in
turn, round after round. The whole step is timed beside them, and so is what comes before an epoch.
On Beauty with the authors' setting, or on a synthetic log of its size where Beauty is not at hand.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from seqrec_kernels import catalog_cross_entropy

from ._common import interleaved
from ._machine import one_thread, surroundings
from .test_fenrec_step import Ours, beauty, prepared, published, step_of

Parts = dict[str, Callable[[], object]]


def parts_of(ours: Ours, size: int) -> Parts:
    """The parts of a step after the warm-up, by name; "whole step" is all of them."""
    method, config = ours.method, ours.method.config
    step = step_of(config, "main", "cpu", 0)
    rows = ours.rows(0, size)
    batch = method.batch(ours.store, rows, step)
    table = method.encoder.table
    assert batch.labels is not None and method.intents is not None
    labels, intents = batch.labels, method.intents
    encoded = method.encoder.last(batch.sequences, step.generator)
    upstream = torch.randn_like(encoded)
    hidden, first, second = (x.detach().requires_grad_() for x in encoded.chunk(3))
    noise = method._noise(first, second, batch.targets, step.generator)
    unit = intents.unit()
    clusters = [intents.nearest(view.detach()) for view in (first, second)]

    def encode() -> Tensor:
        return method.encoder.last(batch.sequences, step.generator)

    def fine() -> None:
        for view, cluster in zip((first, second), clusters, strict=True):
            centre = unit[cluster]
            method._contrast(view, centre, cluster, noise, True, step, 1).backward()

    def learn() -> None:
        for parameter in method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ours.optimizer.step()
        ours.optimizer.zero_grad()

    return {
        "batch: three views, labels": lambda: method.batch(ours.store, rows, step),
        "encoder, 3 B sequences, forward": encode,
        "encoder, forward and backward": lambda: encode().backward(upstream),
        "cross-entropy, soft labels": lambda: catalog_cross_entropy(
            hidden, table, *labels
        ).backward(),
        "noise: drawn and moved": lambda: method._noise(
            first, second, batch.targets, step.generator
        ),
        "coarse term": lambda: method._contrast(
            first, second, batch.targets, noise, True, step, 0
        ).backward(),
        "nearest clusters, 2 views": lambda: [
            intents.nearest(view.detach()) for view in (first, second)
        ],
        "fine terms, 2 views": fine,
        "Adam": learn,
        "whole step": lambda: ours.learn(ours.loss(rows, step)),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where_time_goes")
    parser.add_argument("method", choices=("fenrec",))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    config = published(dropout=0.5)
    ours = prepared(config)
    with one_thread():
        times, _ = interleaved(parts_of(ours, options.batch), "cpu", options.rounds)
        table = {name: statistics.median(part) for name, part in times.items()}
        forward = table.pop("encoder, 3 B sequences, forward")
        table = {"encoder, forward": forward, **table}
        table["encoder, backward"] = table.pop("encoder, forward and backward") - forward
        whole = table.pop("whole step")
        around, before = epoch_seconds(ours)
    rows = len(ours.order)
    steps = math.ceil(rows / options.batch)
    print(f"{beauty()[0]}, B={options.batch}, one thread of {surroundings()['processor']}")
    print(f"{'ms a step':<28} {'':>8} {'share':>6}")
    for name, part in sorted(table.items(), key=lambda entry: -entry[1]):
        print(f"{name:<28} {part:8.2f} {part / whole:6.1%}")
    rest = whole - sum(table.values())
    print(f"{'between the parts':<28} {rest:8.2f} {rest / whole:6.1%}")
    print(f"{'whole step':<28} {whole:8.2f} {1:6.1%}")
    epoch = steps * whole / 1e3 + around + before
    print(f"\n{'s an epoch':<28} {'':>8} {'share':>6}")
    for name, seconds in (
        (f"{steps} steps", steps * whole / 1e3),
        (f"encoding all {rows:,} rows", around),
        ("k-means", before),
        ("epoch, without validation", epoch),
    ):
        print(f"{name:<28} {seconds:8.2f} {seconds / epoch:6.1%}")
    return 0


def epoch_seconds(ours: Ours) -> tuple[float, float]:
    """Thread seconds of encoding all rows, and of k-means as in any epoch but the first."""
    method = ours.method
    assert method.intents is not None
    settings = method.config.method
    begun = time.thread_time()
    points = method.encoded(ours.store)
    encoded = time.thread_time()
    method.intents.iterations = settings.cluster_iterations
    method.intents.restarts = settings.cluster_restarts
    method.intents.fit(points, 0, warm=True)
    return encoded - begun, time.thread_time() - encoded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
