"""Results as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqrec import report


def metrics(scale: float) -> dict[str, float]:
    return {f"{name}@{k}": scale * k / 20 for name in ("HR", "NDCG", "MRR") for k in (5, 20)}


def result(**more: Any) -> dict[str, Any]:
    return {
        "metrics": {"valid": metrics(0.5), "test": metrics(0.4)},
        "baselines": {
            "popularity": {"valid": metrics(0.1), "test": metrics(0.1)},
            "item-to-item": {"valid": metrics(0.3), "test": metrics(0.2)},
        },
        "protocol": {
            "id": "leave-one-out/exclude/mean",
            "users_evaluated": 12345,
            "select": "NDCG@20",
        },
        "data": {
            "users": 12346,
            "items": 99,
            "interactions": 1234567,
            "file": "events.csv",
            "format": "csv",
            "sha256": "0123456789abcdef",
        },
        "method": "sasrec",
        "preset": None,
        "seed": 7,
        "epochs_run": 12,
        "best_epoch": 2,
        "timing": {"train_seconds": 61.6},
        "hardware": {"cpu": "A CPU", "threads": 2},
        **more,
    }


def test_a_finished_run() -> None:
    assert report.finished(result(), Path("runs/my one")) == (
        "test             HR@5    HR@20   NDCG@5  NDCG@20\n"
        "sasrec         0.1000   0.4000   0.1000   0.4000\n"
        "item-to-item   0.0500   0.2000   0.0500   0.2000\n"
        "popularity     0.0250   0.1000   0.0250   0.1000\n"
        "\n"
        "data      12,346 users, 99 items, 1,234,567 interactions "
        "(events.csv, sha256 0123456789ab)\n"
        "protocol  leave-one-out/exclude/mean, 12,345 users, every item ranked\n"
        "training  seed 7, best epoch 2 of 12, chosen by validation NDCG@20; "
        "62 s on 2 threads of A CPU\n"
        "run       runs/my one\n"
        "next      seqrec recommend 'runs/my one' --input histories.txt"
    )


def test_the_preset_is_named() -> None:
    text = report.finished(result(preset="tuned-beauty"), Path("r"))
    assert "\npreset    tuned-beauty\n" in text
    text = report.finished(
        result(preset="tuned-beauty", preset_changed={"training.epochs": 2}), Path("r")
    )
    assert "\npreset    tuned-beauty but training.epochs=2\n" in text


def test_the_best_possible_and_the_share_of_it() -> None:
    """A metric whose best is not known, or 0, has no share."""
    best = {"HR@5": 0.2, "HR@20": 0.0}
    text = report.finished(
        result(best_possible={"test": best}, oracle={"test": metrics(0.5)}), Path("r")
    )
    assert text.splitlines()[4:7] == [
        "best ranker, these targets   0.1250   0.5000   0.1250   0.5000",
        "best possible                0.2000   0.0000",
        "sasrec, of best possible      50.0%",
    ]


def test_a_gpu_is_named() -> None:
    text = report.finished(result(hardware={"gpu": "A GPU", "cpu": "A CPU"}), Path("r"))
    assert "62 s on A GPU\n" in text


def test_an_evaluation_shows_both_parts() -> None:
    text = report.evaluation(result(), "sasrec").splitlines()
    assert text[1] == "sasrec         0.1250   0.5000   0.1250   0.5000"
    assert text[6] == "sasrec         0.1000   0.4000   0.1000   0.4000"
    assert text[-1] == "protocol  leave-one-out/exclude/mean, 12,345 users, every item ranked"
