"""What a run that was stopped is compared by: all that must not depend on how it came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from little import SETTINGS

from seqrec.run import Run
from seqrec.training.journal import read_journal

# Two epochs of two steps, a state saved after each of them
SETS: dict[str, Any] = SETTINGS | {
    "training.epochs": 2,
    "training.batch": 30,
    "training.save_every": 0.0,
    "encoder.layers": 1,
}


def bytes_of(run: Run | Path) -> dict[str, bytes]:
    """All files of a finished run that must not depend on how it came about."""
    directory = run if isinstance(run, Path) else run.directory
    names = ("model.safetensors", "items.txt", "ranks/valid.npz", "ranks/test.npz")
    return {name: (directory / name).read_bytes() for name in names}


def facts(run: Run) -> dict[str, Any]:
    """The result without clocks."""
    return {k: v for k, v in run.result.items() if k not in ("timing", "commit")}


def epochs(run: Run) -> list[dict[str, Any]]:
    """The epochs of the log without clocks."""
    return [
        {k: v for k, v in event.items() if "seconds" not in k}
        for event in read_journal(run.directory / "log.jsonl")
        if event["event"] == "epoch"
    ]


def assert_same(run: Run, whole: Run) -> None:
    assert bytes_of(run) == bytes_of(whole)
    assert facts(run) == facts(whole)
    assert epochs(run) == epochs(whole)
    leftovers = [path for path in run.directory.rglob("*") if path.name.endswith(".tmp")]
    assert leftovers == []


class Killed(BaseException):
    """The process is gone: nothing it would still do is done, no `finally` either."""
