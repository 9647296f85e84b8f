"""The training loop: what it updates, when it stops, what it keeps and what it writes down."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import SETTINGS, config, log_dict, split
from safetensors.torch import load_file
from torch import Tensor

import seqrec
from seqrec import api
from seqrec.config import Config
from seqrec.counters import DROPOUT, EPOCH, derive
from seqrec.data.store import epoch_order
from seqrec.errors import Interrupted, UsageError
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.sasrec import SASRecMethod
from seqrec.run import Run
from seqrec.training import trainer as trainer_module
from seqrec.training.journal import read_journal
from seqrec.training.progress import Progress
from seqrec.training.trainer import Trainer

SPLIT = split()


class Scripted:
    """In the validation's place: values by epoch, and the weights they were asked for."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        self.weights: list[dict[str, Tensor]] = []

    def ranks(self, method: SASRecMethod, rules: Sequence[str]) -> dict[str, Any]:
        self.weights.append({name: x.clone() for name, x in method.state_dict().items()})
        return {rules[0]: self}

    def metrics(self, ks: Sequence[int], ties: str) -> dict[str, float]:
        return {"NDCG@10": self.values[len(self.weights) - 1], "HR@10": 0.5}


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(values: Sequence[float] | None = None, **sets: Any) -> Trainer:
        asked: Config = config(**sets)
        directory = tmp_path / "run"
        directory.mkdir(exist_ok=True)
        method = build(asked, SPLIT.n_items)
        made = Trainer(directory, asked, SPLIT, method, torch.device("cpu"), Progress(False))
        if values is not None:
            made.validation = Scripted(values)  # type: ignore[assignment]
        return made

    return make


def model(of: Trainer) -> dict[str, Tensor]:
    return load_file(of.directory / "model.safetensors")


# What a step does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.1)])
def test_two_steps_are_adam_on_the_clipped_gradient(
    trainer: Callable[..., Trainer], clip: float, decay: float
) -> None:
    """Adam by its formula in float64, on gradients asked for one by one."""
    made = trainer(
        training__clip_norm=clip,
        training__weight_decay=decay,
        training__max_steps=2,
        training__lr=0.02,
    )
    names = [name for name, _ in made.method.named_parameters()]
    weights = {name: p.detach().double().clone() for name, p in made.method.named_parameters()}
    first = {name: torch.zeros_like(x) for name, x in weights.items()}
    second = {name: torch.zeros_like(x) for name, x in weights.items()}
    twin = build(made.config, SPLIT.n_items)
    order = epoch_order(3, 0, made.rows)
    for step in range(2):
        twin.load_state_dict({name: x.float() for name, x in weights.items()})
        generator = torch.Generator().manual_seed(derive(3, DROPOUT, 0, step))
        place = Step(0, step, generator)
        loss = twin.loss(twin.batch(made.store, order[16 * step : 16 * (step + 1)], place), place)
        gradients = torch.autograd.grad(loss, [twin.get_parameter(name) for name in names])
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        assert norm > 0.05  # so that 0.05 does clip
        for name, gradient in zip(names, gradients, strict=True):
            g = gradient.double() * (min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            corrected = first[name] / (1 - 0.9 ** (step + 1))
            spread = (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            weights[name] = weights[name] * (1 - 0.02 * decay) - 0.02 * corrected / spread
    made.run()
    assert made.counters.step == 2
    for name, wanted in weights.items():
        mine = made.method.get_parameter(name).detach().double()
        # a gradient that is 0 but for rounding has a sign but no size: Adam moves it at random
        moved = first[name].abs() > 1e-7
        assert moved.double().mean() > 0.3 or "bias" in name
        torch.testing.assert_close(mine[moved], wanted[moved], rtol=0, atol=2e-5, msg=name)


def test_an_epoch_visits_all_rows_in_a_new_order_and_each_step_has_its_own_seed(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []
    seeds: list[int] = []
    places: list[tuple[int, int]] = []
    batch, loss = SASRecMethod.batch, SASRecMethod.loss

    def spy_batch(self: SASRecMethod, store: Any, chosen: np.ndarray, step: Step) -> Any:
        rows.append(chosen.tolist())
        return batch(self, store, chosen, step)

    def spy_loss(self: SASRecMethod, of: Any, step: Step) -> Tensor:
        seeds.append(step.generator.initial_seed())
        places.append((step.epoch, step.step))
        return loss(self, of, step)

    monkeypatch.setattr(SASRecMethod, "batch", spy_batch)
    monkeypatch.setattr(SASRecMethod, "loss", spy_loss)
    made = trainer([0.1, 0.2, 0.3])
    made.run()
    steps = math.ceil(made.rows / 16)
    assert len(rows) == 3 * steps and steps > 2
    epochs = [[row for part in rows[e * steps : (e + 1) * steps] for row in part] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(made.rows))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {len(part) for part in rows} <= {16, made.rows % 16}
    assert len(set(seeds)) == len(seeds)
    assert places == [(n // steps, n) for n in range(3 * steps)]


# When it stops and what it keeps ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "patience", "best", "run"),
    [
        ([0.1, 0.2, 0.3, 0.4], 2, 4, 4),  # every epoch is better: all of them are run
        ([0.3, 0.2, 0.1, 0.4], 2, 1, 3),  # two worse ones, and the good fourth is never seen
        ([0.3, 0.2, 0.4, 0.1], 2, 3, 4),
        ([0.3, 0.3, 0.3, 0.3], 2, 1, 3),  # as good is not better
        ([0.3, 0.2, 0.1, 0.4], 1, 1, 2),
        ([0.0, 0.0, 0.0, 0.0], 3, 1, 4),  # nothing is still better than no epoch at all
        ([0.1, 0.2, 0.1, 0.2], 10, 2, 4),
    ],
)
def test_patience_counts_epochs_that_are_not_strictly_better(
    trainer: Callable[..., Trainer], values: list[float], patience: int, best: int, run: int
) -> None:
    made = trainer(values, training__patience=patience, training__epochs=4)
    counters = made.run()
    assert (counters.best_epoch, counters.epoch, counters.finished) == (best, run, True)
    assert counters.best_value == values[best - 1]
    kept = model(made)
    weights = made.validation.weights  # type: ignore[attr-defined]
    assert kept.keys() == {*weights[0], "item_counts"}
    for name, x in weights[best - 1].items():
        assert torch.equal(kept[name], x)
    for other in range(run):
        if other != best - 1:
            assert any(not torch.equal(kept[name], x) for name, x in weights[other].items())


def test_the_weights_of_the_best_epoch_are_what_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is made to prefer the second of four epochs; a run of two ends with the same."""

    def run(name: str, values: list[float]) -> Run:
        monkeypatch.setattr(trainer_module, "Evaluator", lambda *args: Scripted(values))
        sets = SETTINGS | {"training.epochs": len(values)}
        return seqrec.train("sasrec", log_dict(), tmp_path / name, sets=sets, progress=False)

    four, two = run("four", [0.1, 0.9, 0.3, 0.2]), run("two", [0.1, 0.9])
    assert (four.result["best_epoch"], four.result["epochs_run"]) == (2, 4)
    assert four.result["metrics"] == two.result["metrics"] == four.evaluate()["metrics"]
    last = run("last", [0.1, 0.2, 0.3, 0.9])
    assert four.result["metrics"] != last.result["metrics"]


def test_an_epoch_is_prepared_once_and_not_again_where_a_run_goes_on_inside_it(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, int]] = []

    def spy(self: SASRecMethod, store: Any, epoch: int, seed: int) -> None:
        prepared.append((epoch, seed))

    monkeypatch.setattr(SASRecMethod, "begin_epoch", spy)
    made = trainer([0.1, 0.2, 0.3], training__epochs=3)
    step = Trainer._step

    def until_the_sixth(self: Trainer, rows: np.ndarray) -> None:
        step(self, rows)
        if self.counters.step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", until_the_sixth)
    with pytest.raises(Interrupted):
        made.run()
    seed = made.config.training.seed
    expected = [(epoch, derive(seed, EPOCH, epoch)) for epoch in range(3)]
    assert made.counters.step_in_epoch == 2 and prepared == expected[:2]

    resumed = trainer([0.2, 0.3], training__epochs=3)
    assert resumed.restore()
    resumed.run()
    assert prepared == expected


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (4, 1), (6, 2), (8, 2)])
def test_max_steps_ends_also_in_mid_epoch_and_validates_there(
    trainer: Callable[..., Trainer], steps: int, epochs: int
) -> None:
    made = trainer([0.1] * 9, training__max_steps=steps, training__epochs=9)
    assert made.steps == 4
    counters = made.run()
    assert (counters.step, counters.epoch, counters.finished) == (steps, epochs, True)
    events = read_journal(made.directory / "log.jsonl")
    assert [event["step"] for event in events] == [min(4 * (e + 1), steps) for e in range(epochs)]
    losses = [event["loss"] for event in events]
    assert all(1.0 < loss < 6.0 for loss in losses)  # a mean over the steps done, not over all


def test_the_number_of_epochs_ends_it(trainer: Callable[..., Trainer]) -> None:
    assert trainer([0.1, 0.2, 0.3], training__epochs=2).run().epoch == 2


# A loss that is no number -------------------------------------------------------------------------


@pytest.mark.parametrize("save_every", [1e9, 0.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_one_clear_line_and_the_state_before_it_stays(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, save_every: float, bad: float
) -> None:
    made = trainer([0.1, 0.2, 0.3], training__save_every=save_every)
    loss = SASRecMethod.loss

    def breaks(self: SASRecMethod, batch: Any, step: Step) -> Tensor:
        return loss(self, batch, step) * (bad if step.step >= 5 else 1.0)

    monkeypatch.setattr(SASRecMethod, "loss", breaks)
    with pytest.raises(UsageError, match=r"the loss became .* in epoch 2 \(training.lr") as error:
        made.run()
    assert "\n" not in str(error.value)
    for name, x in made.validation.weights[0].items():  # type: ignore[attr-defined]
        assert torch.equal(model(made)[name], x)
    again = trainer([0.1, 0.2, 0.3])
    assert again.restore()
    assert again.counters.step == (5 if save_every == 0 else 4)
    for parameter in again.method.parameters():
        assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_a_log_with_nothing_to_train_on_is_refused_before_anything_is_made(
    tmp_path: Path, rows: str
) -> None:
    """Three events each: one to test, one to validate, and one alone teaches nothing."""
    log = {f"u{n}": [f"i{n}", f"i{n + 1}", f"i{n + 2}"] for n in range(5)}
    with pytest.raises(UsageError, match="nothing to train on"):
        seqrec.train("sasrec", log, tmp_path / "run", sets={"method.rows": rows}, progress=False)
    assert not (tmp_path / "run").exists()


# What is written ----------------------------------------------------------------------------------


def test_the_log_and_the_result_are_as_the_contract_says(tmp_path: Path) -> None:
    run = seqrec.train(
        "fenrec",
        log_dict(),
        tmp_path / "run",
        sets={**SETTINGS, "method.warmup_epochs": 2, "training.batch": 128},
        progress=False,
    )
    lines = (run.directory / "log.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "epoch", "end"]
    for number, event in enumerate(events[1:-1], 1):
        assert {"epoch", "step", "phase", "loss", "valid", "seconds"} <= event.keys()
        assert (event["epoch"], event["step"]) == (number, 4 * number)
        assert event["phase"] == ("warmup" if number <= 2 else "main")
        assert event["valid"].keys() == {
            f"{m}@{k}" for m in ("HR", "NDCG", "MRR") for k in (5, 10, 20)
        }
    result = json.loads((run.directory / "result.json").read_text())
    assert result == run.result
    assert {
        *("metrics", "protocol", "also", "baselines", "data", "method", "preset", "seed"),
        *("epochs_run", "best_epoch", "commit", "timing", "versions"),
    } <= result.keys()
    assert [also["protocol"]["seen"] for also in result["also"]] == ["include", "zero"]
    assert result["data"].keys() == {"file", "format", "users", "items", "interactions", "sha256"}
    assert (result["data"]["users"], result["data"]["interactions"]) == (
        len(log_dict()),
        sum(map(len, log_dict().values())),
    )
    assert (result["epochs_run"], result["steps"], result["seed"]) == (3, 12, 3)
    state = sorted(path.name for path in (run.directory / "state").iterdir())
    assert len(state) == 2
    for folder in state:
        assert {path.name for path in (run.directory / "state" / folder).iterdir()} == {
            *("tensors.safetensors", "best.safetensors", "counters.json")
        }


def test_equal_runs_are_equal_bytes_and_another_seed_is_not(tmp_path: Path) -> None:
    """The model file holds no path, time or host: it does not even say which directory."""

    def bytes_of(name: str, seed: int) -> bytes:
        run = seqrec.train(
            "sasrec", log_dict(), tmp_path / name, sets=SETTINGS, seed=seed, progress=False
        )
        return (run.directory / "model.safetensors").read_bytes()

    one = bytes_of("one", 3)
    assert bytes_of("a-longer-name", 3) == one
    assert bytes_of("three", 4) != one
    assert str(tmp_path).encode() not in one


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    """Randomness is a counter: the global streams are neither read nor moved."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1]
        run = seqrec.train(
            "sasrec", log_dict(), tmp_path / f"{seed}", sets=SETTINGS, progress=False
        )
        run.recommend({"you": ["i1"]})
        run.evaluate()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        weights.append((run.directory / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_saved_state_holds_all_a_step_depends_on(trainer: Callable[..., Trainer]) -> None:
    """Weights, moments, the sum of losses: restored into a fresh trainer, bit for bit."""
    made = trainer([0.1, 0.2, 0.3], training__max_steps=6)
    made.run()
    fresh = trainer([0.1, 0.2, 0.3])
    assert fresh.restore()
    assert fresh.counters == made.counters
    assert torch.equal(fresh.loss_sum, made.loss_sum)
    ours, theirs = fresh.optimizer.state_dict(), made.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() != set()
    for index, state in theirs["state"].items():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, x in state.items():
            assert torch.equal(ours["state"][index][name], x)
    for mine, other in zip(fresh.method.parameters(), made.method.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_dry_run_says_what_would_run_and_makes_nothing(tmp_path: Path) -> None:
    text = api.dry_run("sasrec", log_dict(), tmp_path / "run", sets=SETTINGS)
    assert not any(tmp_path.iterdir())
    assert "58 users, 2 not" in text and "4 steps an epoch" in text
