"""Seconds of an epoch with the step as a graph, and without.

python -m benchmarks.captured_epochs [--device cuda|cpu] [--epochs 4] [--tiny]

On CUDA each method is trained twice on Beauty (or a log of its size), with `training.capture` auto
and off; of the last epoch are printed its steps, what came before them (clusters, the tables of the
epoch), and its validation. On a CPU there are no graphs, and fixed shapes stand in their place.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from seqrec.config import load_config
from seqrec.data.log import read_log
from seqrec.data.split import Split, split_log
from seqrec.methods import build
from seqrec.training.journal import read_journal
from seqrec.training.progress import Progress
from seqrec.training.trainer import Trainer

from ._machine import surroundings
from .training_step import beauty

# from the first epoch on the losses they are known by
METHODS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "fenrec": {"method.warmup_epochs": 0},
    "r2ns": {"method.warmup_epochs": 0},
}
TINY = {"training.batch": 32, "encoder.dim": 32, "encoder.max_length": 8}
TINY_LOG = "synthetic:users=60,items=40"


def last_epoch(method: str, capture: str, device: str, split: Split, sets: dict[str, Any]) -> str:
    """Train, and say what the last epoch took."""
    asked = {"encoder.dim": 64, **METHODS[method], **sets, "training.capture": capture}
    config = load_config(method, sets=asked, flags={"data.path": "-"})
    with tempfile.TemporaryDirectory() as folder:
        made = build(config, split.n_items)
        trainer = Trainer(Path(folder), config, split, made, torch.device(device), Progress(False))
        trainer.run()
        event = read_journal(Path(folder) / "log.jsonl")[-1]
    replayed = trainer.fixed is not None and trainer.fixed.runner.replays
    steps = event["seconds"] - event["prepare_seconds"]
    return (
        f"{method}, capture {capture}: {steps:.3f} s for {trainer.steps} steps"
        f"{' (graphs)' if replayed else ''}, {event['prepare_seconds']:.3f} s before them, "
        f"{event['valid_seconds']:.3f} s validation"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tiny", action="store_true", help="a little log, to see that it runs")
    given = parser.parse_args(arguments)
    name, split = (TINY_LOG, split_log(read_log(TINY_LOG))) if given.tiny else beauty()
    print(f"{name} on {given.device}: {surroundings(given.device)}")
    sets = {**(TINY if given.tiny else {}), "training.epochs": given.epochs}
    for method in METHODS:
        short = {"method.clusters": 4} if given.tiny and method == "fenrec" else {}
        for capture in ("auto" if given.device == "cuda" else "fixed", "off"):
            print(last_epoch(method, capture, given.device, split, sets | short), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
