"""Whole runs of ICSRec and FENRec: resumed anywhere they end in the same bytes, and they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from little import SETTINGS, log_dict
from resumed import Killed, assert_same
from safetensors.torch import load_file

import seqrec
from seqrec.api import _warmup_remark
from seqrec.config import load_config
from seqrec.methods.contrastive import ContrastiveMethod
from seqrec.run import Run
from seqrec.training.journal import read_journal
from seqrec.training.state import Counters

# one epoch of warm-up and one after it, a state saved after each of the few steps
SETS: dict[str, Any] = SETTINGS | {
    "encoder.layers": 1,
    "encoder.extra_rows": 2,
    "training.epochs": 2,
    "training.batch": 60,
    "training.save_every": 0.0,
    "method.warmup_epochs": 1,
    "method.clusters": 5,
    "method.gamma": 0.3,
    "method.contrast": "hard-negative",
}
# every random choice that a setting can switch on
DRAWN = {"method.positive": "random", "method.mix_spread": 0.2}
LOG = log_dict(users=40, items=20)
STEPS = 5  # an epoch


def trained(out: Path, **sets: Any) -> Run:
    asked = SETS | DRAWN | {name.replace("__", "."): value for name, value in sets.items()}
    return seqrec.train("fenrec", LOG, out, sets=asked, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run nobody stopped."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


def test_two_phases_of_several_steps(whole: Run) -> None:
    """What the tests below rest on."""
    assert whole.result["steps"] == 2 * STEPS


@pytest.mark.parametrize("step", range(1, 2 * STEPS))
def test_killed_at_any_step_and_resumed_it_ends_in_the_same_bytes(
    step: int, whole: Run, tmp_path: Path
) -> None:
    """Within an epoch the clusters come from the saved state: they are not fitted again."""
    loss = ContrastiveMethod.loss

    def dies(self: ContrastiveMethod, batch: Any, at: Any) -> Any:
        if at.step == step:
            raise Killed
        return loss(self, batch, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveMethod, "loss", dies)
        with pytest.raises(Killed):
            trained(tmp_path / "run")
    fits: list[int] = []
    begin = ContrastiveMethod.begin_epoch

    def counted(self: ContrastiveMethod, store: Any, epoch: int, seed: int) -> None:
        fits.append(epoch)
        begin(self, store, epoch, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveMethod, "begin_epoch", counted)
        resumed = seqrec.resume(tmp_path / "run", progress=False)
    assert fits == ([1] if step <= STEPS else [])
    assert_same(resumed, whole)


def test_killed_while_the_clusters_are_fitted(whole: Run, tmp_path: Path) -> None:
    begin = ContrastiveMethod.begin_epoch

    def dies(self: ContrastiveMethod, store: Any, epoch: int, seed: int) -> None:
        begin(self, store, epoch, seed)
        if epoch == 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveMethod, "begin_epoch", dies)
        with pytest.raises(Killed):
            trained(tmp_path / "run")
    assert_same(seqrec.resume(tmp_path / "run", progress=False), whole)


def test_what_a_run_writes_down(whole: Run) -> None:
    weights = load_file(whole.directory / "model.safetensors")
    assert weights["intents.centroids"].shape == (5, 8)
    assert weights["encoder.table"].shape == (22, 8)
    assert [also["protocol"]["seen"] for also in whole.result["also"]] == ["include", "zero"]
    written = (whole.directory / "config.toml").read_text()
    assert 'positive = "random"' in written and "\nrows =" not in written
    # the two rows that are no items are never recommended
    (row,) = whole.recommend_rows([("u", ["i1"])], k=100)
    assert len(row["items"]) == 19


def test_a_run_without_the_method_s_own_loss_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for warmup, said in ((3, "ended in epoch 1 of a warm-up of 3: fenrec's own loss"), (0, "")):
        sets = SETS | {"method.warmup_epochs": warmup, "training.epochs": 1}
        seqrec.train("fenrec", LOG, tmp_path / str(warmup), sets=sets)
        err = capfd.readouterr().err
        assert said in err and ("warm-up" in err) == bool(said)


@pytest.mark.parametrize(
    ("best", "epochs", "said"),
    [(2, 3, "never began"), (2, 4, "better than warm-up epoch 2"), (4, 5, "")],
)
def test_which_loss_the_kept_weights_have_seen(best: int, epochs: int, said: str) -> None:
    config = load_config("fenrec", sets={"method.warmup_epochs": 3}, flags={"data.path": "-"})
    remarks = _warmup_remark(config, Counters(epoch=epochs, best_epoch=best))
    assert len(remarks) == bool(said) and all(said in remark for remark in remarks)


def test_by_default_the_warm_up_alone_ends_no_run() -> None:
    config = load_config("fenrec", flags={"data.path": "-"})
    assert config.training.patience > config.method.warmup_epochs


@pytest.mark.slow
def test_both_phases_learn_on_the_synthetic_log(tmp_path: Path) -> None:
    """Twelve short epochs, measured at .80 of item-to-item right behind the switch and .84 in test.

    Popularity is at .25; a broken term shows as a collapse.
    """
    log = "synthetic:users=600,items=80,groups=4"
    sets = {"training.batch": 64, "method.warmup_epochs": 8}
    run = seqrec.train("fenrec", log, tmp_path / "run", sets=sets, epochs=12, progress=False)
    valid = [
        (event["phase"], event["valid"]["NDCG@10"])
        for event in read_journal(run.directory / "log.jsonl")
        if event["event"] == "epoch"
    ]
    assert [phase for phase, _ in valid] == ["warmup"] * 8 + ["main"] * 4
    baselines = run.result["baselines"]
    item_to_item = baselines["item-to-item"]["valid"]["NDCG@10"]
    assert baselines["popularity"]["valid"]["NDCG@10"] < 0.3 * item_to_item
    assert min(value for phase, value in valid if phase == "main") > 0.7 * item_to_item
    ruler = baselines["item-to-item"]["test"]["NDCG@10"]
    assert run.result["metrics"]["test"]["NDCG@10"] > 0.7 * ruler
    assert run.result["leak"] is None
