"""Finished runs as `compare` sees them: which belong in one table, and which in one row."""

from __future__ import annotations

import functools
import operator
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrec import rundir
from seqrec.config import APART, Config
from seqrec.errors import UsageError
from seqrec.evaluation.ranking import Ranks
from seqrec.preset import named
from seqrec.run import Run
from seqrec.settings import DataConfig

_TABLES_APART = ("data", "preset")  # a table has one of the former; the latter only names settings
# What `compare` reads of a result.json.
_NEEDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("metrics.test", "metrics.valid", "baselines", "hardware"), dict),
    **dict.fromkeys(("protocol.id", "protocol.ties", "protocol.select", "method"), str),
    **dict.fromkeys(("data.file", "data.sha256"), str),
    **dict.fromkeys(("data.users", "data.items", "data.interactions"), int),
    **dict.fromkeys(("protocol.users_evaluated", "seed", "best_epoch", "epochs_run"), int),
    "timing.train_seconds": (int, float),
}
# What is made of a log: other data, as far as figures go, than the same file without it.
_USED = ("min_user", "min_item", "repeats", "split_seed", "roles_sha256")


@dataclass(frozen=True)
class Finished:
    """A run with its result.

    Attributes:
        directory: its place, as named by the user.
        config: as trained.
        result: what ``result.json`` holds, complete.
    """

    directory: Path
    config: Config
    result: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def method(self) -> str:
        return str(self.result["method"])

    def settings(self) -> dict[str, Any]:
        """``{"encoder.dim": 64, ...}``: two runs that share these differ only in seed."""
        return {
            name: value
            for name, value in self.config.read().items()
            if name.partition(".")[0] not in _TABLES_APART and name not in APART
        }

    def judged_on(self) -> tuple[Any, ...]:
        """What figures must share before they may stand in one table."""
        data, protocol = self.result["data"], self.result["protocol"]
        return (
            *(protocol["id"], data["sha256"], protocol["users_evaluated"]),
            *(data["users"], data["items"], data["interactions"]),
            *(getattr(self.config.data, name) for name in _USED),
        )

    def source(self) -> str:
        """The data's name, with what was made of it where that is not the default."""
        asked = ((name, getattr(self.config.data, name)) for name in _USED)
        told = [f"{n}={str(value)[:12]}" for n, value in asked if value != getattr(DataConfig, n)]
        return " ".join([self.result["data"]["file"], *told])

    def ranks(self) -> Ranks | None:
        """Ranks of the test targets, by user; None where the directory does not keep them.

        Raises:
            UsageError: they cannot be read, or do not give the figures of the result.
        """
        path = self.directory / "ranks" / "test.npz"
        mend = f"remove {path}, the table does without"
        try:
            found = Ranks.load(path)
            order = np.argsort(found.users, kind="stable")
            ranks = Ranks(found.users[order], found.greater[order], found.equal[order])
            metrics = ranks.metrics(self.config.evaluation.ks, self.result["protocol"]["ties"])
        except FileNotFoundError:
            return None
        except (OSError, zipfile.BadZipFile, LookupError, ValueError, TypeError) as error:
            raise UsageError(f"the ranks cannot be read: {error}", str(path), mend) from error
        for name, value in self.result["metrics"]["test"].items():
            if abs(metrics.get(name, np.inf) - value) > 1e-6:
                raise UsageError(
                    f"the ranks are of another run than result.json: they give {name} "
                    f"{metrics.get(name, np.nan):.4f}, not {value:.4f}",
                    str(path),
                    mend,
                )
        return ranks


def read(directory: Path) -> Finished:
    """A finished run.

    Raises:
        UsageError: there is none, it is not finished, or its files are damaged.
    """
    run = Run(directory)
    result = run.result
    where = directory / rundir.RESULT
    try:
        for needed, kind in _NEEDED.items():
            value = functools.reduce(operator.getitem, needed.split("."), result)
            if not isinstance(value, kind):
                raise TypeError(f"{needed} is {value!r}")
        parts = [result["metrics"][part] for part in ("test", "valid")]
        if not parts[0] or parts[0].keys() != parts[1].keys():
            raise LookupError("validation and test have other metrics")
        finite = all(np.isfinite(list(part.values())).all() for part in parts)
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the result is damaged: {type(error).__name__} {error}",
            str(where),
            f"remove it; `seqrec resume {directory}` writes it again",
        ) from None
    if not finite:
        raise UsageError("the result holds what is no number", str(where), "leave this run out")
    return Finished(directory, run.config, result)


def read_all(directories: Sequence[str | Path]) -> list[Finished]:
    """Runs in the order named.

    Raises:
        UsageError: as `read`; none is named, or one twice.
    """
    if not directories:
        raise UsageError("no run to compare", "compare", "name one or more run directories")
    seen: set[Path] = set()
    for name in directories:
        place = Path(name).resolve()
        if place in seen:
            raise UsageError(f"{name} is named twice", "compare", "name each run once")
        seen.add(place)
    return [read(Path(name)) for name in directories]


def by_protocol(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Runs that may stand in one table, in the order of their first ones."""
    tables: dict[tuple[Any, ...], list[Finished]] = {}
    for run in runs:
        tables.setdefault(run.judged_on(), []).append(run)
    return list(tables.values())


def by_settings(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Rows of a table: runs that differ only in seed, by seed.

    Runs of one setting *and* one seed (of two versions of the code, say) are no sample of seeds.
    Where there are such, a row is what lies in one folder, and else every run is its own.
    """
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(repr(run.settings()), []).append(run)
    rows: list[list[Finished]] = []
    for group in groups.values():
        if _distinct(group):
            rows.append(group)
            continue
        folders: dict[Path, list[Finished]] = {}
        for run in group:
            folders.setdefault(run.directory.resolve().parent, []).append(run)
        for folder in folders.values():
            rows += [folder] if _distinct(folder) else [[run] for run in folder]
    return [sorted(row, key=lambda run: run.seed) for row in rows]


def _distinct(runs: Sequence[Finished]) -> bool:
    return len({run.seed for run in runs}) == len(runs)


def labels(rows: Sequence[Sequence[Finished]]) -> list[str]:
    """A name a row: the method, and no more than tells it from the others of that method."""
    found = [row[0].method for row in rows]
    for method in dict.fromkeys(found):
        places = [i for i, name in enumerate(found) if name == method]
        if len(places) > 1:
            for i, name in zip(places, _told_apart([rows[i] for i in places]), strict=True):
                found[i] = f"{method} {name}".rstrip()
    return found


def _told_apart(rows: Sequence[Sequence[Finished]]) -> list[str]:
    """By preset and what of it was changed, else by up to three settings, else by directory.

    No two alike.
    """
    configs = [row[0].config for row in rows]
    presets = [named(one.preset.name, one.changed()) for one in configs]
    settings = [row[0].settings() for row in rows]
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [n for n in names if len({repr(one.get(n)) for one in settings}) > 1]
    by_value = [" ".join(f"{n}={one[n]}" for n in differing if n in one) for one in settings]
    places = _differing_parts([_place(row) for row in rows])
    for told in (presets, by_value if len(differing) <= 3 else [], places):
        if len(set(told)) == len(rows):
            return told
    # seeds of several rows lie in one folder: the row of this run
    return [str(row[0].directory) for row in rows]


def _differing_parts(places: Sequence[str]) -> list[str]:
    """Directories without the parts that all of them begin or end with."""
    parts = [Path(place).parts for place in places]
    shortest = min(map(len, parts)) - 1
    first = last = 0
    while first < shortest and len({one[first] for one in parts}) == 1:
        first += 1
    while first + last < shortest and len({one[-1 - last] for one in parts}) == 1:
        last += 1
    return [os.path.join(*one[first : len(one) - last]) for one in parts]


def _place(row: Sequence[Finished]) -> str:
    """The directory of a run, or the one that holds a row's runs."""
    named = [run.directory for run in row]
    if len({path.is_absolute() for path in named}) > 1:  # these two kinds have nothing in common
        named = [path.absolute() for path in named]
    return os.path.commonpath(named) or "."
