"""FENRec's and ICSRec's step against the published one, dense and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

from benchmarks.dense_fenrec import DenseFENRec, Inputs
from seqrec.config import Config, load_config
from seqrec.data.store import SequenceStore
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.contrastive import ContrastiveMethod

ITEMS, WARMUP = 13, 2
RNG = np.random.default_rng(5)
# users come back to items, so that the two label rules differ and a window holds an item twice
ROWS = [RNG.integers(0, ITEMS, n).tolist() for n in (2, 9, 4, 6, 3, 12, 1, 5, 7)] + [[4, 4, 4, 1]]
STORE = SequenceStore(jagged(*ROWS))
LENGTH = 6


def settings(method: str = "fenrec", **sets: Any) -> Config:
    """Everything of the loss switched on and no dropout; `method__key=value` changes it."""
    asked: dict[str, Any] = {
        "encoder.name": "sasrec-postnorm",
        "encoder.dim": 8,
        "encoder.layers": 2,
        "encoder.dropout": 0.0,
        "encoder.max_length": LENGTH,
        "encoder.extra_rows": 2,
        "method.coarse_weight": 0.3,
        "method.fine_weight": 0.2,
        "method.clusters": 4,
        "training.seed": 7,
    }
    if method == "fenrec":
        asked |= {
            "method.warmup_epochs": WARMUP,
            "method.gamma": 0.3,
            "method.contrast": "hard-negative",
            "method.focal_scale": 4.0,
            "method.noise": 2.0,
        }
    asked |= {name.replace("__", "."): value for name, value in sets.items()}
    return load_config(method, sets=asked, flags={"data.path": "-"})


def made(config: Config) -> ContrastiveMethod:
    """Weights far from their initial values, clusters fitted."""
    method = build(config, ITEMS)
    assert isinstance(method, ContrastiveMethod)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1)))
    method.prepare(STORE)
    method.begin_epoch(STORE, 0, 0)
    return method


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(epoch: int, seed: int = 0) -> Step:
    return Step(epoch, 10 * epoch, generator(seed))


def prefixes() -> list[tuple[list[int], int, int, int]]:
    """Every training row: its cut input, its target, its user and the target's place."""
    return [
        (row[max(0, place - LENGTH) : place], row[place], user, place)
        for user, row in enumerate(ROWS)
        for place in range(1, len(row))
    ]


def window(user: int, place: int, rule: str) -> list[int]:
    row = ROWS[user]
    begin = row.index(row[place]) if rule == "first" else place
    return row[begin : begin + 3]


def positive(row: int) -> int:
    """The published scan: the last row of the same target whose input differs, else the row."""
    found = row
    for other, (items, target, *_) in enumerate(prefixes()):
        if target == prefixes()[row][1] and items != prefixes()[row][0]:
            found = other
    return found


def dense(method: ContrastiveMethod, epoch: int, rows: np.ndarray) -> tuple[DenseFENRec, Tensor]:
    """The published step, with the noise that our step draws from the same seed."""
    chosen = method.config.method
    plain = DenseFENRec(
        dict(method.encoder.named_parameters()), ITEMS, 2, 0.0, chosen, torch.float64
    )
    noise = torch.empty(int(len(rows) * chosen.noise), 8).normal_(generator=generator())
    everything = prefixes()
    assert method.intents is not None
    loss = plain.loss(
        Inputs(
            inputs=[everything[row][0] for row in rows],
            positives=[everything[positive(row)][0] for row in rows],
            targets=[everything[row][1] for row in rows],
            windows=[window(*everything[row][2:], chosen.label_place) for row in rows],
            centroids=method.intents.centroids,
            noise=noise if len(noise) else None,
            main=epoch >= chosen.warmup_epochs and chosen.contrast == "hard-negative",
        )
    )
    return plain, loss


CASES: dict[str, dict[str, Any]] = {
    "as published": {"method__label_place": "first"},
    "own place": {},
    "no soft labels": {"method__gamma": 0.0},
    "no mixed negatives": {"method__mix_weight": 0.0},
    "no focal": {"method__focal_scale": 0.0},
    "no noise": {"method__noise": 0.0},
    "no hard negatives": {"method__contrast": "info-nce"},
    "another temperature": {"method__temperature": 2.0},
}


@pytest.mark.parametrize("epoch", [WARMUP - 1, WARMUP], ids=["warmup", "main"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_published_step(case: str, epoch: int) -> None:
    """Loss and every gradient, all three contrastive terms, before and after the warm-up."""
    method = made(settings(**CASES[case]))
    rows = RNG.permutation(len(prefixes()))[:31]  # repeated targets, both kinds of positives
    found = method.loss(method.batch(STORE, rows, step(epoch)), step(epoch))
    found.backward()
    plain, wanted = dense(method, epoch, rows)
    assert found.dtype == torch.float32 and found.shape == ()
    assert abs(float(found.detach()) - float(wanted.detach())) < 1e-4 * float(wanted.detach())
    gradients = torch.autograd.grad(wanted, list(plain.weights.values()))
    for name, expected in zip(plain.weights, gradients, strict=True):
        mine = method.encoder.get_parameter(name).grad
        assert mine is not None, name
        assert expected.abs().max() > 1e-6, name
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-4 * scale, msg=name)
