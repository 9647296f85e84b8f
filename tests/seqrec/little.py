"""Small logs and configurations that a test can train on in a fraction of a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import seqrec
from seqrec.config import Config, load_config
from seqrec.data.log import read_log
from seqrec.data.split import Jagged, Split, split_log
from seqrec.run import Run

#: as `sets` of `seqrec.train`; every epoch has several steps and every user a few events
SETTINGS: dict[str, Any] = {
    "encoder.dim": 8,
    "encoder.layers": 2,
    "encoder.heads": 2,
    "encoder.dropout": 0.3,
    "encoder.max_length": 6,
    "training.batch": 16,
    "training.lr": 0.01,
    "training.epochs": 3,
    "training.seed": 3,
    "evaluation.batch": 32,
}


def log_dict(users: int = 60, items: int = 25, seed: int = 0) -> dict[str, list[str]]:
    """Sequences of 1 to 14 events, some items twice in a row of events, some users too short."""
    rng = np.random.default_rng(seed)
    log = {}
    for user in range(users):
        length = int(rng.integers(1, 15)) if user % 7 == 0 else int(rng.integers(4, 15))
        walk = (rng.integers(items) + np.cumsum(rng.integers(1, 4, length))) % items
        log[f"u{user}"] = [f"i{item}" for item in walk]
    return log


def write_lines(path: Path, log: dict[str, list[str]] | None = None) -> Path:
    """The log as `user item item ...` text."""
    chosen = log_dict() if log is None else log
    path.write_text("".join(f"{user} {' '.join(items)}\n" for user, items in chosen.items()))
    return path


def config(data: str = "-", **sets: Any) -> Config:
    """A configuration, `table__key=value` laid over `SETTINGS`."""
    asked = SETTINGS | {name.replace("__", "."): value for name, value in sets.items()}
    return load_config("sasrec", sets=asked, flags={"data.path": data})


def split(log: dict[str, list[str]] | None = None) -> Split:
    """Leave-one-out of a log."""
    return split_log(read_log(log_dict() if log is None else log))


def jagged(*rows: list[int]) -> Jagged:
    """Rows as one jagged array."""
    return Jagged.from_lists(list(rows))


def with_data(of: Config, **changes: Any) -> Config:
    """Another `[data]` table."""
    return dataclasses.replace(of, data=dataclasses.replace(of.data, **changes))


# as words of the command: a log and a setting that train in a second
SMALL = "synthetic:users=120,items=30,groups=3,seed=1"
QUICK = ["--set", "encoder.dim=8", "encoder.layers=1", "evaluation.ks=5,10", "--epochs", "2"]
TRAIN = ["train", "sasrec", "--data", SMALL, "--out", "out"]

#: the fixture `command`: words to exit status, stdout, stderr
Command = Callable[..., tuple[int, str, str]]


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def trained(data: Any, out: Path, **sets: Any) -> Run:
    """A finished run of four epochs; `sets` by dotted key."""
    asked = SETTINGS | {"training.epochs": 4} | sets
    return seqrec.train("sasrec", data, out, sets=asked, progress=False)
