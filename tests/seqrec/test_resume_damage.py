"""What `resume` finds in a run directory: damage, another process, other data, or no run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from little import tree
from resumed import SETS, Killed, assert_same

import seqrec
from seqrec import rundir
from seqrec.cli import main
from seqrec.methods.sasrec import SASRecMethod
from seqrec.run import Run
from seqrec.training.journal import read_journal


@pytest.fixture
def data(whole: Run) -> Path:
    return Path(whole.config.data.path)


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its second epoch, with two sound generations."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    loss = SASRecMethod.loss

    def dies(self: SASRecMethod, batch: Any, step: Any) -> Any:
        if step.step == 3:
            raise Killed
        return loss(self, batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SASRecMethod, "loss", dies)
        with pytest.raises(Killed):
            seqrec.train("sasrec", whole.config.data.path, out, sets=SETS, progress=False)
    return out


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def generations(out: Path) -> list[Path]:
    return sorted((out / "state").iterdir())


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def _garble(path: Path) -> None:
    path.write_text("{]")


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink, _garble])
@pytest.mark.parametrize("name", ["tensors.safetensors", "best.safetensors", "counters.json"])
@pytest.mark.parametrize("how_many", [1, 2])
def test_damaged_state_falls_back_says_so_and_ends_in_the_same_bytes(
    copy: Path,
    whole: Run,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    name: str,
    how_many: int,
) -> None:
    for folder in generations(copy)[-how_many:]:
        damage(folder / name)
    resumed = seqrec.resume(copy)
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == how_many
    start = next(e for e in read_journal(copy / "log.jsonl") if e["event"] == "resume")
    assert start["step"] == (2 if how_many == 1 else 0)
    assert_same(resumed, whole)


def test_damaged_weights_of_the_best_epoch_are_put_back(copy: Path, whole: Run) -> None:
    _flip(copy / "model.safetensors")
    assert_same(seqrec.resume(copy, progress=False), whole)


def test_a_run_without_state_starts_at_step_0(copy: Path, whole: Run) -> None:
    for path in list(copy.iterdir()):
        if path.name != "config.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = seqrec.resume(copy, progress=False)
    assert_same(resumed, whole)
    first = json.loads((copy / "log.jsonl").read_text().splitlines()[0])
    assert (first["event"], first["step"]) == ("resume", 0)


def test_a_torn_log_line_is_no_error(copy: Path, whole: Run) -> None:
    with (copy / "log.jsonl").open("a") as stream:
        stream.write('{"event": "epoch", "epo')
    assert_same(seqrec.resume(copy, progress=False), whole)
    for line in (copy / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_a_missing_result_of_a_finished_training_is_written_again(
    whole: Run, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.directory, tmp_path / "run"))
    (out / "result.json").unlink()
    shutil.rmtree(out / "ranks")
    resumed = seqrec.resume(out, progress=False)
    assert_same(resumed, whole)


# Who may resume what ------------------------------------------------------------------------------


def resume_command(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["resume", str(out)])
    return code, capsys.readouterr().err.splitlines()


def test_of_a_finished_run_it_says_so_and_changes_nothing(
    whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(whole.directory)
    code, lines = resume_command(whole.directory, capsys)
    assert code == 0
    assert "finished" in lines[0]
    assert tree(whole.directory) == before


def test_while_another_process_writes_the_second_is_turned_away(
    copy: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rundir.locked(copy):
        before = tree(copy)
        code, lines = resume_command(copy, capsys)
        assert (code, len(lines)) == (2, 1) and "another process" in lines[0]
        code = main(["train", "sasrec", "--data", str(data), "--out", str(copy), "--overwrite"])
        assert code == 2 and "another process" in capsys.readouterr().err
        assert tree(copy) == before


def test_a_lock_left_behind_is_no_lock(copy: Path, whole: Run) -> None:
    (copy / ".lock").write_text("12345\n")
    assert_same(seqrec.resume(copy, progress=False), whole)


@pytest.fixture
def changed(copy: Path, data: Path, tmp_path: Path) -> Iterator[Path]:
    """The run's data, one event longer until the test is over."""
    original = data.read_bytes()
    data.write_bytes(original + b"new-user i1 i2 i3\n")
    yield copy
    data.write_bytes(original)


def test_other_data_is_refused_and_nothing_is_lost(
    changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(changed)
    code, lines = resume_command(changed, capsys)
    assert (code, len(lines)) == (2, 1)
    assert "the data has changed" in lines[0]
    assert tree(changed) == before


def test_data_that_is_gone_and_a_directory_without_a_run_are_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (copy / "config.toml").read_text()
    lines = [
        f'path = "{tmp_path}/gone.txt"' if line.startswith("path = ") else line
        for line in config.splitlines()
    ]
    (copy / "config.toml").write_text("\n".join(lines) + "\n")
    code, said = resume_command(copy, capsys)
    assert (code, len(said)) == (2, 1) and "gone.txt" in said[0]
    for place in (tmp_path / "nowhere", tmp_path):
        code, said = resume_command(place, capsys)
        assert (code, len(said)) == (2, 1) and "no run in" in said[0]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["", "[data\n", '[data]\npath = "x"\nspeed = 3\n', "\x00\xff"])
def test_a_damaged_configuration_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (copy / "config.toml").write_bytes(text.encode("latin-1"))
    before = tree(copy)
    code, said = resume_command(copy, capsys)
    assert (code, len(said)) == (2, 1) and "config.toml" in said[0]
    assert tree(copy) == before
