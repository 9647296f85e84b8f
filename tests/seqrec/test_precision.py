"""training.precision: which products are narrow, and that nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import SETTINGS, split
from torch import Tensor

from seqrec.config import load_config, settable
from seqrec.data.store import SequenceStore
from seqrec.evaluation.ranking import Evaluator
from seqrec.methods import METHODS, build
from seqrec.methods.base import Method, Step
from seqrec.training.precision import products
from seqrec.training.progress import Progress
from seqrec.training.trainer import Trainer

SPLIT = split()
SHORT = {"method.warmup_epochs": 0, "method.clusters": 4}


def made(method: str, dim: int) -> Method:
    read = {key.name for key in settable() if key.read_by(method)}
    short = {key: value for key, value in SHORT.items() if key in read}
    asked = SETTINGS | short | {"encoder.dim": dim}
    found = build(load_config(method, sets=asked, flags={"data.path": "-"}), SPLIT.n_items)
    with torch.no_grad():
        for parameter in found.parameters():
            noise = torch.empty_like(parameter)
            parameter += noise.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return found


def learnt(method: Method, precision: str) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one batch."""
    store = SequenceStore(SPLIT.train)
    method.prepare(store)
    method.begin_epoch(store, 0, 5)
    step = Step(1, 0, torch.Generator().manual_seed(2))
    batch = method.batch(store, np.arange(16), step)
    method.zero_grad()
    with products(precision, store.device):
        loss = method.loss(batch, step)
    loss.backward()
    assert loss.dtype == torch.float32
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert len(gradients) > 5
    return float(loss.detach()), gradients


@pytest.mark.parametrize("dim", [8, 32], ids=["torch", "fused"])
@pytest.mark.parametrize("name", METHODS)
def test_a_narrow_step_is_close_to_the_wide_one(name: str, dim: int) -> None:
    """Within what operands of 8 bits cost, and not the same: the products are narrow."""
    method = made(name, dim)
    loss, gradients = learnt(method, "float32")
    again, same = learnt(method, "float32")
    assert loss == again and all(map(torch.equal, gradients, same))
    narrow, found = learnt(method, "bfloat16")
    assert narrow != loss
    assert narrow == pytest.approx(loss, rel=0.03)
    assert {gradient.dtype for gradient in found} == {torch.float32}
    one, other = (torch.cat([g.flatten() for g in some]) for some in (found, gradients))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.98


def test_weights_moments_and_evaluation_stay_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"encoder.dim": 32, "training.precision": "bfloat16", "training.epochs": 1}
    config = load_config("sasrec", sets=SETTINGS | sets, flags={"data.path": "-"})
    method = build(config, SPLIT.n_items)
    narrow: list[bool] = []
    ranks, loss = Evaluator.ranks, type(method).loss

    def watched_ranks(self: Evaluator, method: Method, rules: Sequence[str]) -> Any:
        narrow.append(torch.is_autocast_enabled("cpu"))
        return ranks(self, method, rules)

    def watched_loss(self: Any, batch: Any, step: Step) -> Tensor:
        narrow.append(torch.is_autocast_enabled("cpu"))
        return loss(self, batch, step)

    monkeypatch.setattr(Evaluator, "ranks", watched_ranks)
    monkeypatch.setattr(type(method), "loss", watched_loss)
    trainer = Trainer(tmp_path, config, SPLIT, method, torch.device("cpu"), Progress(False))
    trainer.run()
    *steps, validation = narrow
    assert all(steps) and len(steps) == trainer.steps and not validation
    states = [x for state in trainer.optimizer.state.values() for x in state.values()]
    assert {x.dtype for x in (*method.parameters(), *states)} == {torch.float32}
