"""FENRec's and ICSRec's step against the published one, dense and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

from benchmarks.dense_contrastive import DenseContrastive, Inputs
from benchmarks.dense_encoder import DenseEncoder
from seqrec.config import Config, load_config
from seqrec.data.store import SequenceStore
from seqrec.methods import build, contrastive
from seqrec.methods.base import Step
from seqrec.methods.contrastive import ContrastiveMethod
from seqrec.methods.views import SameTarget

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
        "method.positive": "last",
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
    if asked.get("method.contrast") == "info-nce":  # it would not read these
        del asked["method.focal_scale"], asked["method.noise"]
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


def dense(method: ContrastiveMethod, epoch: int, rows: np.ndarray) -> tuple[DenseEncoder, Tensor]:
    """The published step's weights and loss, with the noise our step draws from the same seed."""
    chosen = method.config.method
    plain = DenseEncoder(method.encoder, method.config.encoder, torch.float64)
    noise = torch.empty(int(len(rows) * chosen.noise), 8).normal_(generator=generator())
    everything = prefixes()
    assert method.intents is not None
    inputs = [everything[row][0] for row in rows]
    loss = DenseContrastive(plain, chosen, ITEMS + 1).loss(
        Inputs(
            rows=inputs,
            views=(inputs, [everything[positive(row)][0] for row in rows]),
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


# Settings -----------------------------------------------------------------------------------------


def loss_of(config: Config, epoch: int, seed: int = 0) -> float:
    method = made(config)
    rows = np.arange(len(prefixes()))
    return float(method.loss(method.batch(STORE, rows, step(epoch)), step(epoch, seed)).detach())


@pytest.mark.parametrize(
    ("change", "warmup", "main"),
    [
        ({"method__gamma": 0.0}, True, True),
        ({"method__coarse_weight": 0.0}, True, True),
        ({"method__fine_weight": 0.0}, True, True),
        ({"method__mask_same": False}, True, True),
        ({"method__label_place": "first"}, True, True),
        ({"method__contrast": "info-nce"}, False, True),
        ({"method__contrast_form": "paper"}, False, True),
        ({"method__focal_scale": 0.0}, False, True),
        ({"method__margin": 0.0}, False, True),
        ({"method__mix": 0.3}, False, True),
        ({"method__mix_spread": 0.2}, False, True),
        ({"method__mix_weight": 0.0}, False, True),
        ({"method__noise": 0.0}, False, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_changes_the_phase_it_is_for(
    change: dict[str, Any], warmup: bool, main: bool
) -> None:
    for epoch, changes in ((WARMUP - 1, warmup), (WARMUP, main)):
        difference = abs(loss_of(settings(**change), epoch) - loss_of(settings(), epoch))
        assert difference > 1e-3 if changes else difference == 0.0


def test_without_its_three_settings_fenrec_is_icsrec() -> None:
    bare = settings(method__gamma=0.0, method__contrast="info-nce", method__warmup_epochs=0)
    for epoch in (0, 5):
        assert loss_of(bare, epoch) == loss_of(settings("icsrec"), epoch)


def test_without_a_weight_there_is_no_such_term_and_no_cluster() -> None:
    method = made(settings(method__coarse_weight=0.0, method__fine_weight=0.0))
    assert method.intents is None
    assert not any(True for _ in method.buffers())
    rows = np.arange(9)
    batch = method.batch(STORE, rows, step(5))
    hidden = method.encoder.last(batch.sequences).chunk(3)[0]
    logits = hidden @ method.encoder.table.T
    label = torch.zeros(9, ITEMS + 2)
    for row in rows:
        ids = window(*prefixes()[row][2:], "own")
        for k, item in enumerate(ids):
            label[row, item] += 0.3**k / sum(0.3**j for j in range(len(ids)))
    wanted = -(label * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(method.loss(batch, step(5)), wanted)


def test_random_mix_ratios_are_a_function_of_seed_and_step() -> None:
    method = made(settings(method__mix_spread=0.3))
    batch = method.batch(STORE, np.arange(20), step(5))

    def found(number: int) -> float:
        return float(method.loss(batch, Step(5, number, generator())).detach())

    assert found(3) == found(3) != found(4)


def test_the_random_rule_draws_other_views_in_another_epoch() -> None:
    method = made(settings(method__positive="random"))
    rows = np.arange(len(prefixes()))

    def views(epoch: int) -> list[Tensor]:
        batch = method.batch(STORE, rows, step(epoch)).sequences
        return list(batch.items.split(batch.lengths.tolist()))

    one, again, other = views(0), views(0), views(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    count = len(rows)
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        if place < 2 * count:  # the input, twice
            assert a.tolist() == b.tolist() == prefixes()[place % count][0]
    assert any(a.tolist() != b.tolist() for a, b in zip(one, other, strict=True))


# Randomness ---------------------------------------------------------------------------------------


def test_the_views_of_a_row_and_equal_rows_have_dropout_masks_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under a shared mask the two encodings of an input are one, and their loss teaches nothing."""
    method = made(settings(encoder__dropout=0.4))
    encoded: list[Tensor] = []
    last = method.encoder.last

    def spy(*args: Any) -> Tensor:
        encoded.append(last(*args))
        return encoded[-1]

    monkeypatch.setattr(method.encoder, "last", spy)
    rows = np.array([3, 3, 8, 9])
    method.loss(method.batch(STORE, rows, step(5)), step(5))
    hidden, first, second = encoded[0].detach().chunk(3)
    alone = [row for row in range(len(prefixes())) if positive(row) == row]
    assert alone  # rows that are their own second view
    for one, other in ((hidden, first), (hidden[:1], hidden[1:2]), (first[:1], first[1:2])):
        assert (one - other).abs().amax(1).min() > 0.05
    method.loss(method.batch(STORE, np.array(alone), step(5)), step(5))
    _, first, second = encoded[1].detach().chunk(3)
    assert (first - second).abs().amax(1).min() > 0.05


def test_a_step_is_a_function_of_its_seed() -> None:
    config = settings(encoder__dropout=0.4)
    assert loss_of(config, 5, 1) == loss_of(config, 5, 1) != loss_of(config, 5, 2)
    without = settings()  # the noise is drawn from the step's seed as well
    assert loss_of(without, 5, 1) != loss_of(without, 5, 2)
    assert loss_of(without, 0, 1) == loss_of(without, 0, 2)


# Clusters -----------------------------------------------------------------------------------------


def test_an_epoch_begins_with_clusters_of_all_rows_encoded_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = made(settings(encoder__dropout=0.4))
    assert method.intents is not None
    given: list[tuple[Tensor, int, bool]] = []
    monkeypatch.setattr(
        method.intents, "fit", lambda points, seed, warm: given.append((points, seed, warm))
    )
    monkeypatch.setattr(contrastive, "_ENCODED_AT_ONCE", 7)
    method.begin_epoch(STORE, 0, 11)
    method.begin_epoch(STORE, 4, 12)
    rows = [items for items, *_ in prefixes()]
    one_by_one = [SequenceStore(jagged(row)).batch(np.array([0]), LENGTH) for row in rows]
    with torch.no_grad():
        wanted = torch.cat([method.queries(row) for row in one_by_one])
    for points, _, _ in given:
        torch.testing.assert_close(points, wanted)
    assert [(seed, warm) for _, seed, warm in given] == [(11, False), (12, True)]


def test_more_clusters_than_rows_train_all_the_same() -> None:
    many = settings(method__clusters=300)
    assert 0 < loss_of(many, 5) < 100


# No step waits for the device ---------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [WARMUP - 1, WARMUP], ids=["warmup", "main"])
def test_batch_loss_and_backward_never_read_a_device_value(
    epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device nothing has a value, as in `test_sasrec`; the losses are replaced here.

    The noise is off: there is no generator on that device.
    """

    def product(x: Tensor, y: Tensor, *rest: Any, **named: Any) -> Tensor:
        tensors = [x, y, *(t for t in (*rest, *named.values()) if isinstance(t, Tensor))]
        assert all(t.is_meta for t in tensors)
        return (x @ y.T).logsumexp(1).mean()

    for name in ("catalog_cross_entropy", "info_nce", "hard_negative_info_nce"):
        monkeypatch.setattr(contrastive, name, product)
    method = made(settings(method__noise=0.0))
    meta = SequenceStore(jagged(*ROWS), "meta")
    views, labels = method._views, method._labels
    assert isinstance(views, SameTarget) and labels is not None
    views.store = meta
    labels._items, labels._weights = labels._items.to("meta"), labels._weights.to("meta")
    method = method.to("meta")
    batch = method.batch(meta, np.arange(12), step(epoch))
    found = method.loss(batch, step(epoch))
    assert found.is_meta and found.shape == ()
    found.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name
