"""Whole runs with sampled losses: log, command, quality, memory, and the published split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import SETTINGS, log_dict, write_lines
from safetensors.torch import load_file
from torch import Tensor

import seqrec
from seqrec.cli import main
from seqrec.config import load_config
from seqrec.data.log import read_log
from seqrec.data.split import split_log
from seqrec.data.store import SequenceStore
from seqrec.errors import Interrupted
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.sampled import SampledMethod
from seqrec.negatives import _REGISTRY
from seqrec.negatives.base import Question, Sampler
from seqrec.negatives.histories import Histories
from seqrec.negatives.unseen import Unseen
from seqrec.training.journal import read_journal


def test_the_log_says_phase_and_m_of_every_epoch(tmp_path: Path) -> None:
    sets = SETTINGS | {
        "training.epochs": 4,
        "method.warmup_epochs": 2,
        "negatives.decay": 1.0,
        "negatives.pool": 10,
        "negatives.recall": 10,
    }
    run = seqrec.train("r2ns", log_dict(), tmp_path / "run", sets=sets, progress=False)
    events = read_journal(run.directory / "log.jsonl")
    found = [(e["phase"], e.get("top_m")) for e in events if e["event"] == "epoch"]
    assert found == [("warmup", None), ("warmup", None), ("main", 20), ("main", 7)]


def test_the_command_trains_with_every_sampler_and_compare_tells_them_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R2NS itself is among the methods that `test_every_method` trains."""
    data = write_lines(tmp_path / "log.txt")
    words = [f"{name}={value}" for name, value in SETTINGS.items()]
    words += ["training.epochs=1", "negatives.count=2", "method.loss=softmax"]
    runs = []
    for sampler in ("uniform", "popularity", "dns", "dns+"):
        runs.append(str(tmp_path / sampler))
        command = ["train", "sasrec-sampled", "--data", str(data), "--out", runs[-1]]
        assert main([*command, "--set", *words, f"negatives.sampler={sampler}"]) == 0
    capsys.readouterr()
    assert main(["compare", runs[0], runs[3]]) == 0
    table = capsys.readouterr().out
    # a key that a sampler does not read is not told of it
    assert "| sasrec-sampled negatives.sampler=uniform " in table
    assert "negatives.sampler=dns+ negatives.pool=100 negatives.top_m=5 |" in table


def test_r2ns_learns_more_than_popularity_on_the_synthetic_log(tmp_path: Path) -> None:
    """And less than the best possible."""
    sets = {
        "encoder.dim": 32,
        "encoder.dropout": 0.2,
        "training.batch": 128,
        "training.lr": 0.01,
        "training.epochs": 8,
        "method.warmup_epochs": 3,
        "negatives.decay": 0.5,
        "negatives.pool": 20,
        "negatives.recall": 20,
    }
    data = "synthetic:users=600,items=100"
    run = seqrec.train("r2ns", data, tmp_path / "run", sets=sets, progress=False)
    reached = run.result["metrics"]["test"]["NDCG@10"]
    popularity = run.result["baselines"]["popularity"]["test"]["NDCG@10"]
    best = run.result["best_possible"]["test"]["NDCG@10"]
    assert 3 * popularity < reached < best
    assert run.result["epochs_run"] == 8


def test_the_published_beauty_split_has_its_users_and_samples(real_log: Any) -> None:
    """15,654 / 4,472 / 2,237 users and 123,086 training rows, each once and with its own target."""
    log = read_log(str(real_log("Beauty_by_user.txt")))
    split = split_log(log, "by-user", roles=str(real_log("Beauty_by_user.roles.txt")))
    store = SequenceStore(split.train)
    method = build(load_config("r2ns", flags={"data.path": "-"}), split.n_items)
    assert method.rows(store) == 123_086
    assert ((split.train.lengths() > 0).sum(), len(split.valid.users)) == (15_654, 4_472)
    assert len(split.test.users) == 2_237
    method.prepare(store)
    batch = method.batch(store, np.arange(123_086), Step(0, 0, torch.Generator()))
    assert torch.equal(batch.targets, store.values[batch.rows.places])
    counts = batch.rows.seen.offsets.diff()
    # every training sequence holds an item once: history and target are all distinct
    starts = torch.from_numpy(store.offsets)[batch.rows.sequences]
    assert torch.equal(counts, batch.rows.places - starts + 1)
    drawn = method.get_submodule("warm").draw(  # type: ignore[operator]
        Question(Tensor(), Tensor(), batch.targets, batch.rows, 0, 9)
    )[:, 0]
    owner = torch.repeat_interleave(torch.arange(123_086), counts)
    assert not (drawn[owner] == batch.rows.seen.ids).any()
    assert len(drawn.unique()) > 12_000


class Remembering(Sampler):
    """A sampler of one file: each target's last negative, and how often it was asked."""

    def prepare(self, histories: Histories) -> None:
        self._unseen = Unseen(histories)
        places = histories.store.values.numel()
        self.register_buffer("pool", torch.zeros(places, dtype=torch.int64))

    def draw(self, question: Question) -> Tensor:
        drawn = self._unseen.draw(question.rows, 2, question.seed, 99)
        places = question.rows.places
        choice = torch.where((self.pool[places] % 2 == 0), drawn[:, 0], drawn[:, 1])
        self.pool[places] += choice + 1
        return choice[:, None]


def test_what_a_sampler_remembers_is_resumed_and_no_part_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_REGISTRY, "uniform", f"{__name__}:Remembering")
    sets = SETTINGS | {"training.epochs": 2, "training.batch": 6, "training.save_every": 0.0}
    log, loss = log_dict(users=20), SampledMethod.loss
    whole = seqrec.train("sasrec-sampled", log, tmp_path / "whole", sets=sets, progress=False)

    def stops(self: SampledMethod, batch: Any, at: Any) -> Tensor:
        if at.step == whole.result["steps"] // 2 + 1:
            raise KeyboardInterrupt
        return loss(self, batch, at)

    with monkeypatch.context() as patch:
        patch.setattr(SampledMethod, "loss", stops)
        with pytest.raises(Interrupted):
            seqrec.train("sasrec-sampled", log, tmp_path / "run", sets=sets, progress=False)
    resumed = seqrec.resume(tmp_path / "run", progress=False)
    models = [(run.directory / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert models[0] == models[1] and b"sampler" not in models[0]
    states = [max((run.directory / "state").glob("step-*")) for run in (whole, resumed)]
    pools = [load_file(s / "tensors.safetensors")["method.sampler.pool"] for s in states]
    assert torch.equal(pools[0], pools[1]) and int((pools[0] > 0).sum()) > 50
