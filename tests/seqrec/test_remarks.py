"""What a training says on stderr before it begins."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from little import SETTINGS, log_dict, write_lines

from seqrec import preset as presets
from seqrec.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "log.txt")


def said(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[list[str], str]:
    """The remarks of a training of one epoch, and what it printed as its result."""
    sets = [f"{name}={value}" for name, value in SETTINGS.items()]
    asked = ["--data", str(data), "--out", str(out), "--epochs", "1", "--set", *sets, *words]
    assert main(["train", "sasrec", *asked]) == 0
    found = capsys.readouterr()
    remarks = [line for line in found.err.splitlines() if not line.startswith("epoch ")]
    return [line.removeprefix("seqrec: ") for line in remarks], found.out


def test_how_many_users_are_not_evaluated(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = sum(len(items) < 3 for items in log_dict().values())
    assert short > 0
    remarks, _ = said(data, tmp_path / "run", capsys)
    assert f"{60 - short} users evaluated, {short} with fewer than 3 events only train" in remarks
    assert not any("ordered" in remark for remark in remarks)  # there are no times to tie


def test_the_share_of_tied_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{u},i{(u + t) % 5},{max(t, 1)}" for u in range(8) for t in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    remarks, _ = said(tmp_path / "log.csv", tmp_path / "run", capsys)
    assert "events ordered by time; 50.00% of the events share user and time" in " ".join(remarks)
    assert "8 users evaluated" in remarks


@pytest.mark.parametrize("name", ["tuned", "tuned-x", "tuned-y"])
def test_which_preset_it_is_what_of_it_was_changed_and_whether_it_was_made_for_this_data(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    folder = tmp_path / "presets" / "sasrec"
    folder.mkdir(parents=True)
    monkeypatch.setattr(presets, "PRESETS", folder.parent)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    own = "\n".join(f"{key} = {value}" for key, value in SETTINGS.items())
    (folder / "tuned-x.toml").write_text(f'{own}\n[preset]\ndata = "X"\nsha256 = "{digest}"\n')
    (folder / "tuned-y.toml").write_text(f'{own}\n[preset]\ndata = "Y"\nsha256 = "ab"\n')
    remarks, result = said(data, tmp_path / "run", capsys, "--preset", name)
    told = "but training.epochs=1"
    if name == "tuned-y":
        assert remarks[0] == f"preset tuned-y {told}, made for other data than this"
        assert f"preset    tuned-y {told}" in result
    else:
        assert remarks[0] == f"preset tuned-x {told}" and f"preset    tuned-x {told}" in result
