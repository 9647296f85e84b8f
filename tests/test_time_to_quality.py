"""The time to a validation figure is that of a kept run's epochs, at the milliseconds measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_quality
from benchmarks.tables import RESULTS
from benchmarks.time_to_quality import RUNS, Run, kept, table


def entry(steps: int, ours: float, dense: float) -> dict[str, Any]:
    times = {"ours": {"median": ours}, "dense": {"median": dense}}
    return {"correct": True, "steps_an_epoch": steps, "milliseconds": times}


def measured(**cases: dict[str, Any]) -> dict[str, Any]:
    machine = {"processor": "a CPU", "instructions": "AVX9", "threads": 1, "command": "x"}
    named = {name.replace("__", " "): case for name, case in cases.items()}
    return {**machine, "commit": "0123456789", "versions": {"torch": "9"}, "cases": named}


FENREC = {
    "fenrec_step__Beauty__B=256__warmup": entry(514, 50.0, 1000.0),
    "fenrec_step__Beauty__B=256__main": entry(514, 100.0, 3000.0),
}


def test_epochs_of_either_phase_count_as_long_as_their_steps() -> None:
    run = kept("fenrec", RESULTS / RUNS["fenrec"])
    other = kept("sasrec_prefixes", RESULTS / RUNS["sasrec_prefixes"])
    assert run.protocol == other.protocol  # so what is to be reached is one figure
    reached = 0.9 * min(run.best, other.best)
    first = next(i for i, (_, value) in enumerate(run.epochs, 1) if value >= reached)
    assert first > 20  # epochs of warm-up
    lines = [line for line in table(measured(**FENREC)).splitlines() if line[:3] == "| f"]
    seconds = 514 * (20 * 0.05 + (first - 20) * 0.1), 514 * (20 * 1.0 + (first - 20) * 3.0)
    cells = [str(first), f"{seconds[0]:.0f}", f"{seconds[1]:.0f}"]
    ratio = f"{seconds[1] / seconds[0]:.1f}x"
    reached_in = f"{reached:.4f} (leave-one-out/zero/mean)"
    assert lines == [f"| fenrec | {reached_in} | {' | '.join(cells)} | {ratio} |"]


def test_every_setting_that_was_kept_is_that_which_is_timed() -> None:
    for name, folder in RUNS.items():
        assert max(value for _, value in kept(name, RESULTS / folder).epochs) > 0.06


def test_a_run_in_another_setting_or_on_another_log_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(RESULTS / RUNS["duorec"], folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("dim = 64", "dim = 32"))
    with pytest.raises(ValueError, match=r"encoder\.dim is 32, not 64"):
        kept("duorec", folder)
    fewer = {name: {**case, "steps_an_epoch": 9} for name, case in FENREC.items()}
    with pytest.raises(ValueError, match="an epoch of the kept run has 514 steps"):
        table(measured(**fewer))


def test_the_first_epoch_that_reaches_it_is_the_last_that_counts() -> None:
    run = Run("p", [("warmup", 0.1), ("main", 0.3), ("main", 0.2)], 5)
    assert run.until(0.1) == ["warmup"] and run.until(0.2) == ["warmup", "main"] == run.until(0.3)


def test_what_was_not_measured_has_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table(measured())
    assert "| fenrec" not in text and "timed setting: icsrec, r2ns." in text
    path = tmp_path / "result.json"
    path.write_text(json.dumps(measured(**FENREC)))
    assert time_to_quality.main([str(path)]) == 0
    assert "| fenrec |" in capsys.readouterr().out
