"""The one command behind FENRec's tables: it runs what is there, and goes on after a stop."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "fenrec_tables.sh"
RUNS = [
    "fenrec",
    "fenrec-without-hard-negatives",
    "fenrec-without-soft-labels",
    "icsrec",
    "sasrec",
]


def call(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "SEEDS": "3",
        "SEQREC": f"{sys.executable} -m seqrec.cli",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", SCRIPT, data, out, "--epochs", "1"],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_every_run_and_one_table_and_again_without_training(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [
        " ".join([f"u{u}", *draw.sample([f"i{i}" for i in range(300)], draw.randint(4, 8))])
        for u in range(90)
    ]
    (tmp_path / "Beauty.txt").write_text("\n".join(lines) + "\n")
    first = call(tmp_path, tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "left out: there is no" in first.stderr and "Yelp.txt" in first.stderr
    found = sorted(path.parent.parent.name for path in tmp_path.glob("out/beauty/*/*/result.json"))
    assert found == RUNS
    assert first.stdout.count("leave-one-out/zero/mean") >= 1

    stopped = tmp_path / "out" / "beauty" / "icsrec" / "seed-3"
    whole = (stopped / "model.safetensors").read_bytes()
    (stopped / "result.json").unlink()
    again = call(tmp_path, tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before:") == len(RUNS) - 1
    assert (stopped / "result.json").exists()
    assert (stopped / "model.safetensors").read_bytes() == whole
