"""Trained runs that several files compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import little
import pytest

import seqrec


def train(out: Path, log: dict[str, list[str]] | None = None, **sets: Any) -> Path:
    asked = little.SETTINGS | {name.replace("__", "."): value for name, value in sets.items()}
    seqrec.train("sasrec", log or little.log_dict(), out, sets=asked, progress=False)
    return out


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three seeds of one setting, a wider one, one under another rule, and one of other data."""
    folder = tmp_path_factory.mktemp("runs")
    found = {f"seed-{s}": train(folder / f"seed-{s}", training__seed=s) for s in (5, 0, 11)}
    found["wide"] = train(folder / "wide", encoder__dim=16)
    found["seen"] = train(folder / "seen", evaluation__seen="include")
    found["other"] = train(folder / "other", little.log_dict(seed=1))
    found["core"] = train(folder / "core", data__min_user=6)
    return found


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Callable[[str, str], Path]:
    """A run's directory once more, to spoil."""

    def copy(name: str, to: str) -> Path:
        return Path(shutil.copytree(runs[name], tmp_path / to / "run"))

    return copy
