"""What each command does: figures, lines and files, on stdout or where they were asked for."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from little import QUICK, SMALL, TRAIN, Command, tree

import seqrec
from seqrec import cli
from seqrec.config import Config, load_config, settable
from seqrec.methods import METHODS


def test_help_and_version(command: Command) -> None:
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    for name in ("train", "resume", "evaluate", "recommend", "compare", "data", "doctor", "bench"):
        assert f"    {name}" in out
        status, text, err = command(name, "--help")
        assert (status, err) == (0, "")
        assert f"  seqrec {name}" in text, "an example"
        assert "exit status:" in text
    status, text, _ = command("train", "--help")
    for key in settable():
        assert f"\n  {key.name} " in text
    assert "\n  evaluation.ks              5,10,20 " in text
    status, out, err = command("--version")
    assert (status, err) == (0, "") and out.startswith("seqrec ")


def test_help_of_train_shows_what_can_be_typed_and_what_a_run_would_use(command: Command) -> None:
    _, text, _ = command("train", "--help")
    shown = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    for key in settable():
        head, _, _ = shown[key.name].partition(key.help)
        word = head.removeprefix(f"  {key.name}").strip()
        assert key.read(word, "--set", text=True) == key.default
        if key.kind is str and key.rule:
            assert key.allowed in shown[key.name]
    own = text.partition("what the methods' own defaults change:")[2].partition("presets:")[0]
    for method in METHODS:
        config = load_config(method, flags={"data.path": "-"})
        (named,) = re.findall(rf"^  {method} ((?:.*\n)(?: {{6}}.*\n)*)", own, re.MULTILINE)
        changed = {word for word in named.split() if word != "none"}
        assert load_config(method, sets=sorted(changed), flags={"data.path": "-"}) == config
        differing = {
            key.name
            for key in settable()
            if key.read_by(method) and _value(config, key.name) != key.default
        }
        assert {word.partition("=")[0] for word in changed} == differing


def _value(config: Config, name: str) -> object:
    table, _, leaf = name.partition(".")
    return getattr(getattr(config, table), leaf)


def test_dry_run_creates_nothing(command: Command, tmp_path: Path) -> None:
    status, out, _ = command(*TRAIN, "--dry-run", "--seed", "7")
    assert status == 0
    assert "seed = 7" in out
    assert list(tmp_path.iterdir()) == []


def test_train_prints_the_figures_beside_the_rulers(command: Command, tmp_path: Path) -> None:
    status, out, err = command(*TRAIN, *QUICK)
    assert status == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["test", "HR@5", "HR@10", "NDCG@5", "NDCG@10"]
    test = result["metrics"]["test"]
    assert rows[1] == ["sasrec", *(f"{test[name]:.4f}" for name in rows[0][1:])]
    labels = [line.partition("  ")[0] for line in out.splitlines()[:7]]
    assert labels[2:4] == ["item-to-item", "popularity"]
    assert labels[5:7] == ["best possible", "sasrec, of best possible"]
    assert "leave-one-out/exclude/mean" in out
    assert "seqrec recommend out --input" in out
    assert "epoch" in err


def test_resume_of_a_finished_run_says_so(command: Command, trained: Path) -> None:
    before = tree(trained)
    status, out, err = command("resume", trained)
    assert status == 0
    assert err == f"seqrec: {trained} is finished, nothing to resume\n"
    assert out.startswith("test ")
    assert tree(trained) == before


def test_evaluate_prints_another_protocol(command: Command, trained: Path) -> None:
    before = tree(trained)
    status, out, _ = command("evaluate", trained, "--seen", "include", "--ties", "pessimistic")
    assert status == 0
    assert "leave-one-out/include/pessimistic" in out
    assert [line for line in out.splitlines() if line.startswith(("valid ", "test "))]
    assert tree(trained) == before


def test_recommend_keeps_order_and_ids(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (trained / "items.txt").read_text().split()
    histories = f"zoë {items[0]} {items[1]} nowhere\nbob nowhere\nanna {items[2]}\n"
    (tmp_path / "in.txt").write_text(histories)
    status, out, err = command("recommend", trained, "--input", "in.txt", "--k", "3")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["user"] for row in rows] == ["zoë", "bob", "anna"]
    assert [row.get("fallback") for row in rows] == [None, "popularity", None]
    for row in rows:
        assert set(row) <= {"user", "items", "scores", "fallback"}
        assert len(row["items"]) == len(row["scores"]) == 3
        assert set(row["items"]) <= set(items)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert not {items[0], items[1]} & set(rows[0]["items"])
    assert "zoë" in out, "ids as they are, not escaped"
    assert "skipped 2 items" in err

    status, printed, _ = command(
        "recommend", trained, "--input", "in.txt", "--k", "3", "--out", "out.jsonl"
    )
    assert (status, printed) == (0, "")
    assert (tmp_path / "out.jsonl").read_text() == out

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(histories.encode())))
    status, piped, _ = command("recommend", trained, "--input", "-", "--k", "3")
    assert (status, piped) == (0, out)


def test_recommend_writes_to_a_device_and_behind_a_link(command: Command, trained: Path) -> None:
    """Neither is replaced by a file."""
    Path("in.txt").write_text("a i1\n")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert command("recommend", trained, "--input", "in.txt", "--out", "pipe")[0] == 0
        assert json.loads(os.read(reader, 10000))["user"] == "a"
        assert Path("pipe").is_fifo()
    finally:
        os.close(reader)
    Path("link").symlink_to("target.jsonl")
    assert command("recommend", trained, "--input", "in.txt", "--out", "link")[0] == 0
    assert Path("link").is_symlink() and json.loads(Path("target.jsonl").read_text())


def test_ids_are_utf_8_whatever_the_locale(trained: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "seqrec.cli", "recommend", str(trained), "--input", "-"],
        input="日本 i1\n".encode(),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["user"] == "日本"


def test_recommend_more_than_there_is_and_seen(command: Command, trained: Path) -> None:
    items = (trained / "items.txt").read_text().split()
    Path("in.txt").write_text(f"a {' '.join(items[:10])}\n")
    _, out, _ = command("recommend", trained, "--input", "in.txt", "--k", "1000")
    assert sorted(json.loads(out)["items"]) == sorted(items[10:])
    _, out, _ = command("recommend", trained, "--input", "in.txt", "--k", "1000", "--include-seen")
    assert sorted(json.loads(out)["items"]) == sorted(items)


def test_the_command_is_what_python_does(trained: Path, tmp_path: Path) -> None:
    sets = {"encoder.dim": 8, "encoder.layers": 1, "evaluation.ks": (5, 10)}
    run = seqrec.train("sasrec", SMALL, tmp_path / "run", sets=sets, epochs=2, progress=False)
    left, right = (folder / "model.safetensors" for folder in (trained, run.directory))
    assert left.read_bytes() == right.read_bytes()
    assert run.result["metrics"] == json.loads((trained / "result.json").read_text())["metrics"]


def test_data_says_what_is_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,time\n"
        + "".join(
            f"u{user},i{(user + event) % 7},{event}\n" for user in range(5) for event in range(4)
        )
    )
    status, out, err = command("data", "log.csv")
    assert (status, err) == (0, "")
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert (facts["users"], facts["items"], facts["interactions"]) == ("5", "7", "20")
    assert facts["format"].startswith("csv")
    assert "5 users evaluated" in out

    wanted = ["data.split=global-time", "data.min_item=3"]
    status, out, err = command("data", "log.csv", "--set", *wanted)
    assert (status, err) == (0, "")
    cut = dict(line.split(None, 1) for line in out.splitlines())
    assert cut["items"] != facts["items"] and cut["split"].startswith("global-time: ")
    mistakes = {
        "training.lr=1": "training.lr says nothing of a log (--set training.lr=1)",
        "data.split=global": "data.split",
        "data.mni_item=3": "did you mean data.min_item?",
    }
    for text, said in mistakes.items():
        status, out, err = command("data", "log.csv", "--set", text)
        assert (status, out, err.count("\n")) == (2, "", 1) and said in err


def test_doctor_names_every_operator(command: Command) -> None:
    import seqrec_kernels  # noqa: F401  (registers the operators)
    from seqrec_kernels.backend import report

    status, out, err = command("doctor")
    assert (status, err) == (0, "")
    assert report("cpu"), "operators are registered"
    for operator in report("cpu"):
        assert f"{operator} on cpu: " in out
    for title in ("versions", "devices", "kernels", "graphs", "compiled", "to mend"):
        assert f"\n{title}" in f"\n{out}"


def test_doctor_mends_a_library_that_does_not_load(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, and older than the package: the slow paths run, and that is not in order."""
    host = pytest.importorskip("seqrec_kernels._host")
    told = host.build_info() | {"parts": "host,cpu"}
    monkeypatch.setattr(host, "build_info", lambda: told)
    reason = "the C++ library is older than the package, without rank; build it anew"
    for missing in (reason, None):
        monkeypatch.setattr("seqrec_kernels.native.MISSING", missing)
        mend = command("doctor")[1].partition("\nto mend ")[2]
        assert ("older than the package, without rank: pip install" in mend) == bool(missing)
