"""The published steps that ours are timed against compute what ours compute.

Each from the same weights, on the same rows, views and negatives, without dropout: in float64,
where both are what their formulas say, and in float32, where ours runs what it is timed with.
FENRec's step has more cases in `test_fenrec`.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import little
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import test_training_step
from benchmarks._common import gated
from benchmarks.dense_contrastive import augmented
from benchmarks.training_step import SETTINGS, Ours, Rival, configured, prepared, step_of
from seqrec.config import Config

SPLIT = little.split()
#: the width is one that the fused encoder takes
SMALL: dict[str, Any] = {
    "encoder__dim": 32,
    "encoder__max_length": 6,
    "encoder__dropout": 0.0,
}
OF_METHOD = {
    "r2ns": {"negatives__pool": 7, "negatives__recall": 6},
    "icsrec": {"method__clusters": 4},
    "fenrec": {"method__clusters": 4},
}
OTHER = {"pre": {"encoder__name": "sasrec"}, "post": {"encoder__name": "sasrec-postnorm"}}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "main", {}) for name in SETTINGS},
    "r2ns, warm-up": ("r2ns", "warmup", {}),
    "fenrec, warm-up": ("fenrec", "warmup", {}),
    "icsrec, pre-norm": ("icsrec", "main", OTHER["pre"]),
    "r2ns, pre-norm, 2 layers": ("r2ns", "main", {**OTHER["pre"], "encoder__layers": 2}),
    "cl4srec, post-norm": ("cl4srec", "main", OTHER["post"]),
    "sasrec, post-norm, positions": ("sasrec_positions", "main", OTHER["post"]),
    "duorec, masked": ("duorec", "main", {"method__mask_same": True}),
    "duorec, input thrice": ("duorec", "main", {"method__positive": "dropout"}),
}


def made(name: str, **sets: Any) -> Ours:
    """Weights far from their initial values."""
    ours = prepared(configured(name, **{**SMALL, **OF_METHOD.get(name, {}), **sets}), SPLIT)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    ours.method.begin_epoch(ours.store, 0, 0)
    return ours


def results(weights: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """The loss and its gradients, by name."""
    found = torch.autograd.grad(loss, list(weights.values()))
    return {"loss": loss.detach(), **dict(zip(weights, found, strict=True))}


def of_ours(ours: Ours, rows: np.ndarray, phase: str) -> dict[str, Tensor]:
    loss = ours.loss(rows, step_of(ours.config, phase, "cpu", 3))
    return results(dict(ours.method.encoder.named_parameters()), loss)


def of_rival(rival: Rival, rows: np.ndarray, phase: str) -> dict[str, Tensor]:
    inputs = rival.inputs(rows, step_of(rival.ours.config, phase, "cpu", 3), handed=True)
    return results(rival.encoder.weights, rival.loss(inputs))


def scale(x: Tensor) -> float:
    assert x.abs().max() > 1e-6  # nothing is compared with nothing
    return max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_in_float64_a_published_step_is_ours(case: str) -> None:
    name, phase, sets = CASES[case]
    if name == "fenrec":
        sets = {**sets, "method__noise": 0.0, "method__gamma": 0.0}  # these are float32 with us
    ours = made(name, **sets)
    ours.method.double()
    rows = ours.order[:31]
    right = of_rival(Rival(ours, torch.float64), rows, phase)
    for what, found in of_ours(ours, rows, phase).items():
        atol = 1e-12 * scale(right[what])
        torch.testing.assert_close(found, right[what], rtol=0, atol=atol, msg=what)


@pytest.mark.parametrize("case", CASES)
def test_in_float32_ours_is_as_near_to_it_as_the_published_step(case: str) -> None:
    name, phase, sets = CASES[case]
    ours = made(name, **sets)
    rows = ours.order[:31]
    right = of_rival(Rival(ours, torch.float64), rows, phase)
    plain = of_rival(Rival(ours), rows, phase)
    for what, found in of_ours(ours, rows, phase).items():
        error, theirs = ((x[what] - right[what]).abs().max() for x in ({what: found}, plain))
        assert error <= 2 * theirs + 2e-6 * scale(right[what]), what


# What the published steps draw themselves --------------------------------------------------------


def test_the_views_that_the_published_step_draws_are_cropped_masked_and_reordered() -> None:
    settings = configured("cl4srec").method
    random.seed(0)
    rows = [list(range(10)), [4], [7, 8, 9, 9, 8]] * 60
    one, other = augmented(rows, settings, 99)
    seen = set()
    for row, *pair in zip(rows, one, other, strict=True):
        kinds = [kind(row, view) for view in pair]
        if len(row) == 10:
            assert set(kinds) < {"crop", "mask", "reorder"} and len(set(kinds)) == 2
            seen |= set(kinds)
        elif row == [4]:
            assert pair == [[4], [4]]
    assert seen == {"crop", "mask", "reorder"}


def kind(row: list[int], view: list[int]) -> str:
    """What was done to a row, as far as it shows, and that it was done right."""
    if 99 in view:
        hidden = [place for place, item in enumerate(view) if item == 99]
        assert len(hidden) == int(0.3 * len(row))
        assert [x for x in view if x != 99] == [x for i, x in enumerate(row) if i not in hidden]
        return "mask"
    if len(view) < len(row):
        assert len(view) == int(0.6 * len(row) + 1e-9)
        assert any(view == row[begin : begin + len(view)] for begin in range(len(row)))
        return "crop"
    moved = [place for place, (a, b) in enumerate(zip(row, view, strict=True)) if a != b]
    assert sorted(view) == sorted(row)
    assert not moved or moved[-1] - moved[0] < int(0.6 * len(row) + 1e-9)
    return "reorder"


def test_the_best_candidate_is_the_one_that_ours_draws() -> None:
    """Of one each the choice is no draw: recall, ranking and loss are compared in one."""
    ours = made("r2ns", negatives__decay=0.0, negatives__top_m=1)
    rival, step = Rival(ours, torch.float64), step_of(ours.config, "main", "cpu", 3)
    rows = ours.order[:31]
    asked = []
    unseen = ours.method.sampler._unseen
    drawn = unseen.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unseen, "draw", lambda *words: asked.append(drawn(*words)) or asked[0])
        inputs = rival.inputs(rows, step, handed=True)
    chosen = dataclasses.replace(inputs, negatives=None, candidates=asked[0])
    assert inputs.negatives is not None and chosen.top_m == 1
    hidden = rival.encoder.last(chosen.rows).detach()
    assert torch.equal(rival.model.drawn(hidden, chosen), inputs.negatives)
    assert not torch.equal(asked[0][:, 0], inputs.negatives)


@pytest.mark.parametrize("phase", ["warmup", "main"])
def test_the_candidates_that_the_published_step_draws_have_not_been_met(phase: str) -> None:
    ours = made("r2ns", negatives__recall=1)
    rival, rows = Rival(ours), ours.order[:31]
    inputs = rival.inputs(rows, step_of(ours.config, phase, "cpu", 3), handed=False)
    assert inputs.negatives is None
    random.seed(0)
    hidden, table = rival.encoder.last(inputs.rows).detach(), rival.encoder.table
    shared = int(table[:, hidden.mean(0).argmax()].argmax())
    found: set[int] = set()
    for _ in range(40):
        negatives = rival.model.drawn(hidden, inputs).tolist()
        for negative, met in zip(negatives, inputs.met, strict=True):
            assert negative not in met or (phase == "main" and negative == shared)
        found |= set(negatives)
    assert len(found) > 20


# The benchmark -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", test_training_step.SHAPES["tiny"], ids=lambda shape: shape[0])
def test_every_side_of_a_benchmark_is_right(
    shape: test_training_step.Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_training_step, "beauty", lambda: ("little", SPLIT))

    def short(name: str, **sets: Any) -> Config:
        asked = {**SMALL, "encoder__dropout": 0.5, **OF_METHOD.get(name, {}), **sets}
        return configured(name, **asked)

    monkeypatch.setattr(test_training_step, "configured", short)
    case = test_training_step.case(shape)
    assert case.name == f"{shape[0]}_step little B=8 main"
    assert case.steps > 1 and case.operations > 0
    left_out: dict[str, str] = {}
    assert {"ours", "dense"} <= set(gated(case, left_out)) and not left_out
