"""Whole runs on data of every kind, and on ids of any characters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from little import log_dict, trained, write_lines

import seqrec
from seqrec.cli import main
from seqrec.data.log import read_log
from seqrec.run import Run

LOG = log_dict()


# Data of every kind -------------------------------------------------------------------------------


def test_a_dictionary_a_frame_and_a_file_of_one_log_train_the_same_weights(
    run: Run, tmp_path: Path
) -> None:
    pairs = [(user, item) for user, items in LOG.items() for item in items]
    frame = pl.DataFrame(
        {
            "user": [user for user, _ in pairs],
            "item": [item for _, item in pairs],
            "time": list(range(1_700_000_000, 1_700_000_000 + len(pairs))),
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    sources = {
        "dict": LOG,
        "frame": frame,
        "csv": tmp_path / "log.csv",
        "text": str(tmp_path / "log.csv"),
    }
    weights = (run.directory / "model.safetensors").read_bytes()
    for name, source in sources.items():
        other = trained(source, tmp_path / name)
        assert (other.directory / "model.safetensors").read_bytes() == weights, name
        assert other.result["metrics"] == run.result["metrics"]
        assert other.evaluate()["metrics"] == run.result["metrics"]


def test_a_frame_is_ordered_by_its_times(run: Run, tmp_path: Path) -> None:
    """Rows in any order; users and items are numbered by appearance, so names are compared."""
    rows = [
        (user, item, float(time)) for user, items in LOG.items() for time, item in enumerate(items)
    ]
    np.random.default_rng(0).shuffle(rows)
    frame = pl.DataFrame(
        {
            "user": [str(user) for user, _, _ in rows],
            "item": [str(item) for _, item, _ in rows],
            "timestamp": [float(time) for _, _, time in rows],
        }
    )
    other = trained(frame, tmp_path / "run")
    log = read_log(other.directory / "interactions.parquet")
    for user, name in enumerate(log.users):
        events = log.item_rows[log.offsets[user] : log.offsets[user + 1]]
        assert [log.items[row] for row in events] == LOG[name]
    assert other.items == log.items
    assert Path(other.result["data"]["file"]).name == "interactions.parquet"


def test_a_run_on_data_that_was_no_file_can_be_stopped_resumed_moved_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrec.methods.sasrec import SASRecMethod

    whole = trained(LOG, tmp_path / "whole")
    loss = SASRecMethod.loss

    def stops(self: SASRecMethod, batch: Any, step: Any) -> Any:
        if step.step == 9:
            raise OSError("the disk is full")
        return loss(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(SASRecMethod, "loss", stops)
        with pytest.raises(OSError, match="full"):
            trained(LOG, tmp_path / "run")
    resumed = seqrec.resume(tmp_path / "run", progress=False)
    weights = (whole.directory / "model.safetensors").read_bytes()
    assert (resumed.directory / "model.safetensors").read_bytes() == weights
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = seqrec.load(tmp_path / "moved")
    assert moved.evaluate()["metrics"] == whole.result["metrics"]


def test_a_relative_path_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "a" / "log.txt", LOG)
    monkeypatch.chdir(tmp_path / "a")
    trained("log.txt", Path("../run"))
    monkeypatch.chdir(tmp_path / "b")
    again = seqrec.load("../run")
    assert again.evaluate()["metrics"] == again.result["metrics"]


# Ids of any kind ----------------------------------------------------------------------------------

ODD = [
    *("\u2028", "\u2029", "\x85", "\x1c", "\x1d", "\x1e", "\x1f", "\u00a0", "\u3000", "\ufeff"),
    *(
        '"',
        "'",
        "\\",
        "\\n",
        "#",
        "-",
        "--",
        "007",
        "7",
        "1.0",
        "nan",
        "None",
        "null",
        "\u00e9",
        "e\u0301",
    ),
    *("a\u2028b", "x\x85", "日本", "🎬", "{}", "[]", ",", ";", "=", "%s", "B000\x1e1"),
]


def odd_log() -> dict[str, list[str]]:
    n = len(ODD)
    return {f"u{u}": [ODD[(u + step) % n] for step in range(5)] for u in range(n)}


@pytest.mark.parametrize("kind", ["dict", "lines"])
def test_any_text_without_blanks_is_an_id(tmp_path: Path, kind: str) -> None:
    """Characters at which other readers break lines are part of an id, in and out."""
    source: Any = odd_log()
    if kind == "lines":
        source = tmp_path / "log.txt"
        text = "".join(f"{user} {' '.join(items)}\n" for user, items in odd_log().items())
        source.write_bytes(text.encode())
    run = trained(source, tmp_path / "run", **{"training.epochs": 1})
    assert sorted(run.items) == sorted(ODD)
    assert seqrec.load(run.directory).items == run.items
    for item in ODD:
        (row,) = run.recommend_rows([("u", [item])], k=100)
        assert "unknown" not in row
        assert sorted(row["items"]) == sorted(set(ODD) - {item})
    assert seqrec.resume(run.directory, progress=False).result == run.result


def test_odd_ids_come_through_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(odd_log(), tmp_path / "run", **{"training.epochs": 1})
    (tmp_path / "in.txt").write_bytes("".join(f"u {item}\n" for item in ODD).encode())
    out = tmp_path / "out.jsonl"
    asked = ["--input", str(tmp_path / "in.txt"), "--k", "100", "--out", str(out)]
    code = main(["recommend", str(run.directory), *asked])
    assert code == 0 and capsys.readouterr().err == ""
    rows = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert len(rows) == len(ODD)
    for item, row in zip(ODD, rows, strict=True):
        assert sorted(row["items"]) == sorted(set(ODD) - {item})


def test_an_id_with_a_blank_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"u{u},the item {u + n}" for u in range(5) for n in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *rows]) + "\n")
    out = tmp_path / "run"
    assert main(["train", "sasrec", "--data", str(tmp_path / "log.csv"), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "the item 0" in said[0]
    assert not out.exists()
