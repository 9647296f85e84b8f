"""Fixtures of several files: trained runs, the command in an empty folder, a folder of presets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import little
import pytest
import resumed

import seqrec
from seqrec import cli
from seqrec import preset as presets
from seqrec.run import Run


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


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> little.Command:
    """Runs `seqrec ...` in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "passive"))

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "sasrec", "--data", little.SMALL, "--out", str(directory), *little.QUICK]
    assert cli.main(words) == 0
    return directory


@pytest.fixture
def preset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty presets folder of sasrec, in place of the shipped one."""
    monkeypatch.setattr(presets, "PRESETS", tmp_path / "presets")
    folder = tmp_path / "presets" / "sasrec"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run nobody stopped."""
    log = little.log_dict(users=50, items=20)
    data = little.write_lines(tmp_path_factory.mktemp("data") / "log.txt", log)
    out = tmp_path_factory.mktemp("whole") / "run"
    return seqrec.train("sasrec", data, out, sets=resumed.SETS, progress=False)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on a file of the little log."""
    data = little.write_lines(tmp_path_factory.mktemp("data") / "log.txt")
    return little.trained(data, tmp_path_factory.mktemp("run") / "run")
