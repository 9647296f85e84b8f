"""A whole run on the synthetic log, judged against what is best possible on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqrec
from seqrec import run as run_module
from seqrec.cli import main
from seqrec.data.log import InteractionLog
from seqrec.data.split import Jagged, Split, split_log

SMALL = "synthetic:users=1500,items=80,groups=4,seed=1"
SETTING = {
    "encoder.dim": 32,
    "encoder.layers": 1,
    "encoder.dropout": 0.1,
    "training.lr": 0.005,
    "training.batch": 128,
}


def test_training_beats_both_rulers_and_stays_below_the_best_possible(tmp_path: Path) -> None:
    run = seqrec.train(
        "sasrec", SMALL, tmp_path / "run", sets=SETTING, epochs=12, seed=3, progress=False
    )
    result = run.result
    reached = result["metrics"]["test"]["NDCG@10"]
    best = result["best_possible"]["test"]["NDCG@10"]
    rulers = {name: found["test"]["NDCG@10"] for name, found in result["baselines"].items()}
    assert rulers["popularity"] < rulers["item-to-item"] < best
    assert max(rulers.values()) < reached
    assert 0.8 * best < reached < best
    # the best ranker's own score differs from its expectation by luck alone, 1,500 users of it
    oracle = result["oracle"]["test"]["NDCG@10"]
    assert abs(oracle - best) < 4 * 0.5 / np.sqrt(1500)
    assert result["leak"] is None
    assert result["protocol"]["id"] == "leave-one-out/exclude/mean"


def test_a_planted_leak_ends_with_exit_1_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The held-out events are put back into training, as a broken split would."""

    def leaking(log: InteractionLog, *how: Any) -> Split:
        whole = Jagged(log.offsets, log.item_rows)
        return dataclasses.replace(split_log(log, *how), train=whole)

    monkeypatch.setattr(run_module, "split_log", leaking)
    out = tmp_path / "run"
    log = "synthetic:users=300,items=60,groups=3,seed=1"
    sets = ["encoder.dim=64", "encoder.dropout=0", "training.lr=0.01", "training.batch=64"]
    arguments = ["train", "sasrec", "--data", log, "--out", str(out), "--epochs", "60"]
    status = main([*arguments, "--set", *sets, "training.patience=60"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert lines[-1].startswith("seqrec: ") and "leaked" in lines[-1]
    # nothing is lost: the result stands there, with the finding in it
    assert "leaked" in json.loads((out / "result.json").read_text())["leak"]
