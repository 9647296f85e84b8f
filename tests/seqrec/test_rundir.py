"""Who may write to a run directory, and what --overwrite may remove."""

from __future__ import annotations

from pathlib import Path

import pytest
from little import SETTINGS, config, log_dict, with_data, write_lines

import seqrec
from seqrec import api, rundir
from seqrec.cli import main
from seqrec.errors import UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "log.txt")


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def train(data: Path, out: Path, *words: str) -> int:
    sets = [f"{name}={value}" for name, value in SETTINGS.items()]
    asked = ["--data", str(data), "--out", str(out), "--epochs", "1", "--set", *sets, *words]
    return main(["train", "sasrec", *asked])


def refused(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("seqrec: ")
    for part in parts:
        assert part in lines[0]


# A directory for a new run ------------------------------------------------------------------------


def test_a_new_an_empty_and_a_nested_directory_will_do(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new", tmp_path / "a" / "b" / "c"):
        assert train(data, out) == 0
        names = {path.name for path in out.iterdir()} - {".lock"}
        assert names == {
            *("config.toml", "items.txt", "model.safetensors", "state", "log.jsonl", "ranks"),
            "result.json",
        }


def test_a_directory_with_a_run_is_refused_naming_both_ways_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run") == 0
    before = tree(tmp_path)
    capsys.readouterr()
    assert train(data, tmp_path / "run") == 2
    refused(capsys, f"seqrec resume {tmp_path / 'run'}", "--overwrite", "not empty")
    assert tree(tmp_path) == before


def test_overwrite_starts_anew_and_leaves_nothing_of_the_old_run(
    data: Path, tmp_path: Path
) -> None:
    first = seqrec.train("sasrec", log_dict(), tmp_path / "run", sets=SETTINGS, progress=False)
    assert (first.directory / "interactions.parquet").exists()
    assert train(data, tmp_path / "run", "--overwrite") == 0
    assert train(data, tmp_path / "fresh") == 0
    again, fresh = tree(tmp_path / "run"), tree(tmp_path / "fresh")
    assert again.keys() == fresh.keys()
    assert again["model.safetensors"] == fresh["model.safetensors"]
    assert len(again["log.jsonl"].splitlines()) == len(fresh["log.jsonl"].splitlines()) == 3


@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        "data/log.txt",
        "state.old/x",
        "result.json.bak",
        "state/mine.txt",
        "ranks/a.csv",
    ],
)
def test_overwrite_never_touches_files_that_are_no_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert train(data, tmp_path) == 0
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("years of work")
    before = tree(tmp_path)
    capsys.readouterr()
    assert train(data, tmp_path, "--overwrite") == 2
    refused(capsys, name if name.startswith(("state/", "ranks/")) else name.split("/")[0])
    assert tree(tmp_path) == before


def test_a_directory_without_a_run_is_refused_naming_both_ways_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("years of work")
    assert train(data, tmp_path) == 2
    refused(capsys, f"seqrec resume {tmp_path}", "--overwrite", "'notes.txt'", "not empty")
    assert tree(tmp_path) == {"notes.txt": b"years of work"}


@pytest.mark.parametrize("way", ["straight", "through a link"])
def test_overwrite_never_removes_the_data_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """The log of a run on a dict may stand nowhere but in its directory."""
    out = tmp_path / "run"
    seqrec.train("sasrec", log_dict(), out, sets=SETTINGS, progress=False)
    before = tree(out)
    (tmp_path / "link").symlink_to(out)
    given = (out if way == "straight" else tmp_path / "link") / "interactions.parquet"
    capsys.readouterr()
    assert train(given, out, "--overwrite") == 2
    refused(capsys, "interactions.parquet", "--overwrite", "copy it")
    assert tree(out) == before
    assert train(given, tmp_path / "another", "--overwrite") == 0


@pytest.mark.parametrize("name", [".git/config", ".notes", "state/mine.txt", "ranks/notes"])
def test_files_of_others_among_those_of_a_run_stay(data: Path, tmp_path: Path, name: str) -> None:
    assert train(data, tmp_path) == 0
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("years of work")
    train(data, tmp_path, "--overwrite")  # it may refuse, or work around them
    assert foreign.read_text() == "years of work"


def test_a_mistake_under_overwrite_loses_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run") == 0
    before = tree(tmp_path)
    (tmp_path / "bad.txt").write_text("u1 a b\nu1 c d\n")
    capsys.readouterr()
    assert train(tmp_path / "bad.txt", tmp_path / "run", "--overwrite") == 2
    refused(capsys, "two lines")
    assert train(data, tmp_path / "run", "--overwrite", "training.lr=-1") == 2
    refused(capsys, "training.lr")
    (tmp_path / "bad.txt").unlink()
    assert tree(tmp_path) == before


def test_a_file_or_a_place_that_cannot_be_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "run", Path("/proc/no-such/run"), tmp_path / ("x" * 300)):
        assert train(data, out) == 2
        refused(capsys, "--out")
    assert tree(tmp_path) == {"file": b"x"}


def test_what_a_process_killed_at_its_start_leaves_is_no_run(data: Path, tmp_path: Path) -> None:
    """Neither resume nor --overwrite is then the answer: the same command is."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.toml.4242.tmp").write_text("[da")
    assert train(data, tmp_path) == 0
    assert not (tmp_path / ".config.toml.4242.tmp").exists()


def test_without_a_configuration_resume_is_not_recommended(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.txt").write_text("a\n")
    assert train(data, tmp_path) == 2
    refused(capsys, "--overwrite starts anew", f"`seqrec resume {tmp_path}` would need its config")


def test_of_two_commands_started_at_once_the_slower_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw an empty directory; the faster one finished while the other read its data."""
    create = rundir.create

    def slow(directory: Path) -> None:
        monkeypatch.setattr(rundir, "create", create)
        seqrec.train("sasrec", data, directory, sets=SETTINGS, progress=False)
        create(directory)

    monkeypatch.setattr(rundir, "create", slow)
    with pytest.raises(UsageError, match="not empty"):
        seqrec.train("sasrec", data, tmp_path / "run", sets=SETTINGS, progress=False)
    assert seqrec.load(tmp_path / "run").result["epochs_run"] == 3


# Its files ----------------------------------------------------------------------------------------


def test_only_one_process_holds_the_lock_and_it_goes_with_its_holder(tmp_path: Path) -> None:
    with rundir.locked(tmp_path):
        with pytest.raises(UsageError, match="another process"), rundir.locked(tmp_path):
            pass
    with rundir.locked(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), rundir.locked(tmp_path):
        _ = 1 / 0
    with rundir.locked(tmp_path):
        pass


def test_the_lock_sweeps_temporary_files_of_the_run_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    torn = [".result.json.1.tmp", ".model.safetensors.77.tmp", "ranks/.test.npz.5.tmp"]
    others = [".vimrc.tmp", "result.json.tmp", ".result.json", "ranks/.mine.1.tmp"]
    for name in torn + others:
        (tmp_path / name).write_text("x")
    with rundir.locked(tmp_path):
        assert set(tree(tmp_path)) == {*others, ".lock"}


@pytest.mark.parametrize("items", [[], ["a"], ["a", "b\u2028c", "\x85", "\ufeffd", "7"]])
def test_item_ids_come_back_in_order(tmp_path: Path, items: list[str]) -> None:
    rundir.write_items(tmp_path, items)
    assert rundir.read_items(tmp_path) == items


def test_the_configuration_comes_back_whole(tmp_path: Path) -> None:
    written = with_data(config('/a "b"/ü\\n.txt', training__lr=0.1 + 0.2), sha256="0" * 64)
    (tmp_path / "config.toml").write_text(written.to_toml(), encoding="utf-8")
    assert rundir.read_config(tmp_path) == written


def test_the_configuration_is_there_before_anything_else_of_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[set[str]] = []

    def look(directory: Path, items: list[str]) -> None:
        found.append({path.name for path in directory.iterdir()} - {".lock"})
        raise OSError("stop here")

    monkeypatch.setattr(rundir, "write_items", look)
    with pytest.raises(OSError, match="stop here"):
        seqrec.train("sasrec", data, tmp_path / "run", sets=SETTINGS, progress=False)
    assert found == [{"config.toml"}]
    kept = rundir.read_config(tmp_path / "run")
    assert kept.data.path == str(data) and len(kept.data.sha256) == 64


def test_a_dry_run_refuses_what_the_run_would_refuse(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="no run's"):
        api.dry_run("sasrec", data, tmp_path)
