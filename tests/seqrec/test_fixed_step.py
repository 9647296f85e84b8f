"""The step in fixed shapes is the jagged step, and training in it is training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixed_steps import STEPS, WARMUP, configured, trainer
from torch import Tensor

from seqrec import draws
from seqrec.counters import DROPOUT, derive
from seqrec.data.store import JaggedBatch, epoch_order
from seqrec.methods import contrastive
from seqrec.methods.base import FixedStep, Method, Step
from seqrec.negatives.histories import Rows
from seqrec.training import captured
from seqrec.training.journal import read_journal
from seqrec_kernels import native

# The same function --------------------------------------------------------------------------------


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parameters are float64, and so is what they meet.

    The noise of a step draws from a seed of its own, however many were asked for before it.
    """

    def drawn(rows: int, columns: int, source: draws.Draws, device: torch.device) -> Tensor:
        return draws.normal(rows, columns, draws.Draws(source._root + 1000), device).double()

    monkeypatch.setattr(contrastive, "normal", drawn)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass
class Both:
    """One step of a method, in both forms.

    Attributes:
        fixed, jagged: (batch, step) each.
    """

    method: Method
    fixed: tuple[Any, FixedStep]
    jagged: tuple[Any, Step]


def both(name: str, directory: Path, room: int = 1, **sets: Any) -> Both:
    """A step's two forms, drawing the same numbers.

    Args:
        room: how many times the buffer is larger than it must be.
    """
    config, epoch, at = configured(name, **sets), STEPS[name][1], 3
    made = trainer(config, directory)
    method = made.method
    labels = getattr(method, "_labels", None)
    if labels is not None and torch.get_default_dtype() == torch.float64:
        labels._weights = labels._weights.double()
    fixed = made.fixed
    assert fixed is not None
    order = epoch_order(3, epoch, made.rows)
    fixed.begin(epoch, at - 1, 41, order)
    fixed._capacities = {count: size * room for count, size in fixed._capacities.items()}
    taken: list[tuple[Any, FixedStep]] = []

    def take(batch: Any, step: FixedStep) -> Tensor:
        taken.append((batch, step))
        return torch.zeros(())

    method.loss = take  # type: ignore[method-assign]
    fixed.update = lambda loss: None
    fixed.step(16)
    del method.loss
    step = Step(epoch, 41, taken[0][1].generator)  # type: ignore[arg-type]
    jagged = method.batch(made.store, order[16 * (at - 1) : 16 * at], step)
    return Both(method, taken[0], (jagged, step))


def gradients(method: Method, batch: Any, step: Any) -> tuple[Tensor, list[Tensor]]:
    step.generator._asked = 0
    loss = method.loss(batch, step)
    found = torch.autograd.grad(loss, list(method.parameters()), materialize_grads=True)
    return loss.detach(), list(found)


def agree(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=0)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", STEPS)
def test_the_batch_is_the_jagged_one_and_a_tail(name: str, tmp_path: Path) -> None:
    made = both(name, tmp_path)
    fixed, targets, *labels = made.fixed[0]
    jagged, wanted, *others = made.jagged[0]
    assert isinstance(jagged, JaggedBatch)
    filled = jagged.items.numel()
    assert fixed.items.numel() > filled  # there is a tail
    assert torch.equal(fixed.offsets, jagged.offsets)
    assert torch.equal(fixed.items[:filled], jagged.items)
    assert torch.equal(targets[: len(wanted)], wanted) and (targets[len(wanted) :] == -1).all()
    for mine, theirs in zip(labels, others, strict=True):
        if isinstance(mine, Rows):  # what is met stands in a buffer with a tail as well
            mine = (
                *(part[: len(wanted)] for part in mine[:3]),
                mine.seen.ids[: theirs.seen.ids.numel()],
            )
            theirs = (*theirs[:3], theirs.seen.ids)
        for one, other in zip(mine or (), theirs or (), strict=True):
            assert torch.equal(one, other)
    for said in ("rows", "places", "places_from_end"):
        mine, theirs = getattr(fixed, said)(), getattr(jagged, said)()
        assert torch.equal(mine[:filled], theirs)
        tail = mine[filled:]
        assert (tail >= 0).all() and (tail < max(len(jagged), 6)).all()
    assert torch.equal(fixed.last(), jagged.last())


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", STEPS)
def test_loss_and_gradients_are_the_jagged_steps(name: str, tmp_path: Path) -> None:
    made = both(name, tmp_path, encoder__dropout=0.0)
    one, other = gradients(made.method, *made.fixed), gradients(made.method, *made.jagged)
    assert float(one[0]) > 0.1
    assert all(float(g.abs().max()) > 1e-6 for g in one[1][:2])
    agree(one, other)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", STEPS)
def test_a_longer_tail_changes_nothing(name: str, tmp_path: Path) -> None:
    """With dropout: what is drawn for a token does not depend on the size of the buffer."""
    narrow, wide = both(name, tmp_path / "a"), both(name, tmp_path / "b", room=3)
    assert len(wide.fixed[0][0].items) == 3 * len(narrow.fixed[0][0].items)
    agree(gradients(narrow.method, *narrow.fixed), gradients(wide.method, *wide.fixed))


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
@pytest.mark.parametrize("name", ["sasrec", "sasrec-prefixes", "sasrec-postnorm", "fenrec-paper"])
def test_the_fused_step_is_the_jagged_one_with_dropout(name: str, tmp_path: Path) -> None:
    """What the C++ draws for a token goes by its place; both forms give it the same seeds."""
    made = both(name, tmp_path, encoder__dim=32)
    one, other = gradients(made.method, *made.fixed), gradients(made.method, *made.jagged)
    torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=0)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_the_seeds_of_a_step_are_the_hosts(tmp_path: Path) -> None:
    made = both("fenrec-main", tmp_path)
    (_, fixed), (_, jagged) = made.fixed, made.jagged
    assert int(fixed.epoch_tensor) == jagged.epoch == WARMUP
    assert len(made.method.seeds) == 4
    for asked in made.method.seeds:
        purpose, *numbers = asked
        assert int(fixed.seed(3, purpose, *numbers)) == jagged.seed(3, purpose, *numbers)
        assert jagged.seed(3, purpose, *numbers) == derive(3, purpose, 41, *numbers)
    assert int(fixed.generator._root) == derive(3, DROPOUT, WARMUP, 2)


# Training -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", ["sasrec", "sasrec-prefixes", "icsrec", "cl4srec", "r2ns-main"])
def test_training_in_fixed_shapes_is_training(name: str, tmp_path: Path) -> None:
    """Without dropout the two forms are one run; in float64, where rounding moves no rank."""
    losses = {}
    for capture in ("off", "fixed"):
        config = configured(name, encoder__dropout=0.0, training__capture=capture)
        made = trainer(config, tmp_path / capture)
        assert (made.fixed is None) == (capture == "off")
        made.run()
        losses[capture] = [
            (entry["loss"], *entry["valid"].values())
            for entry in read_journal(tmp_path / capture / "log.jsonl")
            if entry["event"] == "epoch"
        ]
    assert len(losses["off"]) == 3
    np.testing.assert_allclose(losses["fixed"], losses["off"], rtol=1e-6)


def test_an_epoch_needs_one_shape_and_one_for_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many graphs as there are phases, row counts and buffer sizes."""
    keys: list[Any] = []
    run = captured.Graphs.run

    def spy(self: captured.Graphs, key: Any, body: Any) -> None:
        keys.append(key)
        run(self, key, body)

    monkeypatch.setattr(captured.Graphs, "run", spy)
    made = trainer(configured("fenrec-main"), tmp_path)
    made.run()
    assert len(keys) == 3 * made.steps
    last = made.rows % 16
    assert {(phase, count) for phase, count, _ in keys} == {
        (phase, count) for phase in ("warmup", "main") for count in (16, last)
    }
    assert len(set(keys)) <= 6
