"""What is told of an epoch's time: its parts, and its wall seconds by one command."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import where_time_goes
from seqrec.data.log import read_log
from seqrec.data.split import split_log

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["sasrec", "fenrec", "r2ns"])
def test_the_parts_of_a_step_add_up(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = "synthetic:users=150,items=300,groups=5"
    monkeypatch.setattr(where_time_goes, "beauty", lambda: (log, split_log(read_log(log))))
    kept = tmp_path / "kept.txt"
    assert where_time_goes.main([name, "--rounds", "1", "--out", str(kept)]) == 0
    text = capsys.readouterr().out
    assert kept.read_text() == text
    step, epoch, *_ = re.split(r"\n\n", text.partition("\n\n")[2])
    for table, least in ((step, 5), (epoch, 2)):
        title, *rows, together = table.splitlines()
        assert title.split()[-1] == "share"
        figures = [float(row.split()[-2]) for row in rows]
        assert len(figures) >= least
        assert sum(figures) == pytest.approx(float(together.split()[-2]), abs=0.01 * len(rows))
        assert figures == sorted(figures, reverse=True)
    assert ("k-means" in epoch) == (name == "fenrec")


@pytest.mark.slow
def test_epochs_are_timed_in_both_precisions(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [
        " ".join([f"u{u}", *draw.sample([f"i{i}" for i in range(300)], draw.randint(4, 8))])
        for u in range(90)
    ]
    (tmp_path / "Beauty.txt").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "epoch_seconds.sh", tmp_path, tmp_path / "out"],
        env={
            **os.environ,
            "EPOCHS": "2",
            "METHODS": "sasrec",
            "SEQREC": f"{sys.executable} -m seqrec.cli",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for precision in ("float32", "bfloat16"):
        run = tmp_path / "out" / f"sasrec-{precision}"
        assert json.loads((run / "result.json").read_text())["epochs_run"] == 2
        assert f'precision = "{precision}"' in (run / "config.toml").read_text()
        assert len(re.findall(rf"{run}: \[[0-9.]+, [0-9.]+\] s an epoch", done.stdout)) == 1
