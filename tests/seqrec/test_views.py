"""The views of CL4SRec and DuoRec, and whole runs of both, with and without FENRec's losses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

import seqrec
from seqrec import UsageError
from seqrec.config import Config, load_config
from seqrec.counters import VIEWS, derive
from seqrec.data.augment import Augmentation
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.contrastive import ContrastiveMethod
from seqrec.methods.views import Augmented, Repeated, views_of

ITEMS = 30
STORE = SequenceStore(jagged(list(range(12)), [5, 4, 3, 2, 1], [9, 4, 8, 5], list(range(8, 30))))
FENREC = {"method.gamma": 0.2, "method.contrast": "hard-negative"}


def settings(method: str, **sets: Any) -> Config:
    asked = {"encoder.dim": 8, "encoder.max_length": 10, "training.seed": 3}
    asked |= {name.replace("__", "."): value for name, value in sets.items()}
    return load_config(method, sets=asked, flags={"data.path": "-"})


def step(number: int = 4) -> Step:
    return Step(1, number, torch.Generator().manual_seed(number))


def lists(batch: JaggedBatch) -> list[list[int]]:
    return [batch.items[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]


def test_augmented_views_stand_behind_the_inputs_and_follow_the_step() -> None:
    config = settings("cl4srec")
    views = views_of(STORE, config, ITEMS)
    assert isinstance(views, Augmented)
    rows = np.array([3, 10, 20, 20, 30])
    sequences, targets = views.batch(rows, step())
    inputs, wanted = STORE.prefix_batch(rows, 10)
    usual = Augmentation(0.6, 0.3, 0.6, mask_row=ITEMS)
    one, other = usual.views(inputs, derive(3, VIEWS, 4))
    assert lists(sequences) == lists(inputs) + lists(one) + lists(other)
    assert torch.equal(targets, wanted)
    assert lists(views.batch(rows, step())[0]) == lists(sequences)
    assert lists(views.batch(rows, step(5))[0]) != lists(sequences)


def test_dropout_views_are_the_input_again() -> None:
    views = views_of(STORE, settings("duorec", method__positive="dropout"), ITEMS)
    assert isinstance(views, Repeated)
    sequences, targets = views.batch(np.array([2, 25]), step())
    inputs, wanted = STORE.prefix_batch(np.array([2, 25]), 10)
    assert lists(sequences) == lists(inputs) * 3 and torch.equal(targets, wanted)


def test_the_mask_has_a_row_of_its_own_and_is_never_recommended() -> None:
    method = build(settings("cl4srec", method__mask=1.0), ITEMS)
    assert isinstance(method, ContrastiveMethod)
    method.prepare(STORE)
    batch = method.batch(STORE, np.arange(20), step())
    assert int(batch.sequences.items.max()) == ITEMS == len(method.items())
    method.loss(batch, step()).backward()
    assert method.encoder.table.grad is not None
    assert method.encoder.table.grad[ITEMS].abs().max() > 0


def test_masking_without_a_row_for_it_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"encoder\.extra_rows is 0.*a masked item needs a row"):
        settings("cl4srec", encoder__extra_rows=0)
    with pytest.raises(UsageError, match=r"method\.crop .*at least 0 and at most 1"):
        settings("cl4srec", method__crop=1.5)


@pytest.mark.parametrize("name", ["cl4srec", "duorec"])
def test_the_loss_is_cross_entropy_and_one_term_with_every_other_row_as_negative(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(settings(name, encoder__dropout=0.0), ITEMS)
    assert isinstance(method, ContrastiveMethod) and method.intents is None
    method.prepare(STORE)
    encoded: list[Tensor] = []
    last = method.encoder.last

    def spy(*args: Any) -> Tensor:
        encoded.append(last(*args))
        return encoded[-1]

    monkeypatch.setattr(method.encoder, "last", spy)
    # rows 4 and 14 predict the same item: negatives of each other all the same
    rows = np.array([1, 4, 9, 14, 17])
    batch = method.batch(STORE, rows, step())
    loss = method.loss(batch, step())
    hidden, one, other = encoded[0].double().chunk(3)
    scores = hidden @ method.encoder.table.double().T
    entropy = torch.nn.functional.cross_entropy(scores, batch.targets)
    z = torch.cat((one, other))
    similar = (z @ z.T).fill_diagonal_(-torch.inf)
    partner = (torch.arange(10) + 5) % 10
    contrast = torch.nn.functional.cross_entropy(similar, partner)
    torch.testing.assert_close(loss.double(), entropy + 0.1 * contrast, rtol=1e-5, atol=1e-6)
    assert contrast.item() > 1


def test_fenrecs_labels_and_losses_on_top_change_the_main_phase() -> None:
    plain, more = (
        build(settings("cl4srec", encoder__dropout=0.0, **sets), ITEMS)
        for sets in ({}, {"method__contrast": "hard-negative", "method__warmup_epochs": 1})
    )
    losses = []
    for method in (plain, more):
        method.prepare(STORE)
        for epoch in (0, 1):
            at = Step(epoch, 7, torch.Generator().manual_seed(0))
            losses.append(float(method.loss(method.batch(STORE, np.arange(20), at), at)))
    assert losses[0] == losses[1] == losses[2] != losses[3]


@pytest.mark.slow
@pytest.mark.parametrize("fenrec", [False, True], ids=["plain", "with-fenrec"])
@pytest.mark.parametrize("name", ["cl4srec", "duorec"])
def test_a_short_run_finds_the_groups_of_the_synthetic_log(
    name: str, fenrec: bool, tmp_path: Path
) -> None:
    """A few epochs are not enough for item-to-item (.60), and far more than popularity (.31)."""
    sets: dict[str, Any] = {
        "encoder.dim": 32,
        "encoder.dropout": 0.1,
        "training.epochs": 5,
        "training.batch": 64,
        "training.lr": 0.005,
    }
    if fenrec:
        sets |= FENREC | {"method.warmup_epochs": 2}
    log = "synthetic:users=600,items=60,groups=3,seed=1"
    run = seqrec.train(name, log, tmp_path / "run", sets=sets, progress=False)
    reached = run.result["metrics"]["test"]["HR@10"]
    assert reached > 1.4 * run.result["baselines"]["popularity"]["test"]["HR@10"], reached
