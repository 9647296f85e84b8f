"""SASRec with sampled losses: what a step computes, that none waits, and settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import SETTINGS, jagged
from torch import Tensor
from torch.nn import functional as F

import seqrec
from seqrec.config import Config, load_config
from seqrec.data.store import SequenceStore
from seqrec.errors import UsageError
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.sampled import SampledMethod, calibrated
from seqrec.negatives import build_sampler
from seqrec.negatives.base import Question
from seqrec_kernels import philox

ITEMS = 40
ROWS = [np.random.default_rng(n).integers(0, ITEMS, n).tolist() for n in (5, 9, 1, 12, 3, 7)]
STORE = SequenceStore(jagged(*ROWS))
DATA = {"data.path": "-"}


def config(method: str = "r2ns", **sets: Any) -> Config:
    short = {"method.warmup_epochs": 1, "method.rows": "positions"}
    named = {name.replace("__", "."): value for name, value in sets.items()}
    return load_config(method, sets=SETTINGS | short | named, flags=DATA)


def made(method: str = "r2ns", **sets: Any) -> SampledMethod:
    found = build(config(method, **sets), ITEMS)
    assert isinstance(found, SampledMethod)
    found.prepare(STORE)
    return found


def step(epoch: int = 0, number: int = 0) -> Step:
    return Step(epoch, number, torch.Generator().manual_seed(1))


def asked(method: SampledMethod, monkeypatch: pytest.MonkeyPatch, epoch: int) -> Question:
    """What the sampler of an epoch is asked in a step on all rows."""
    seen = []
    sampler = method.warm if epoch < method.settings.warmup_epochs else method.sampler
    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda question: seen.append(question) or draw(question))
    method.loss(method.batch(STORE, np.arange(method.rows(STORE)), step()), step(epoch))
    return seen[0]


# A step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
@pytest.mark.parametrize(
    "sets",
    [
        {"method__loss": "bce", "negatives__count": 3},
        {"method__loss": "bce", "negatives__count": 3, "method__calibration": 0.75},
        {"method__loss": "bpr", "negatives__count": 3},
        {"method__loss": "softmax", "negatives__count": 3},
        {"method__loss": "softmax", "negatives__sampler": "popularity"},
    ],
)
def test_the_loss_is_that_of_the_queries_and_the_negatives_by_hand(
    rows: str, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = made("sasrec-sampled", method__rows=rows, method__warmup_epochs=0, **sets)
    negatives: list[Tensor] = []
    draw = method.sampler.draw
    monkeypatch.setattr(
        method.sampler, "draw", lambda question: negatives.append(draw(question)) or negatives[0]
    )
    batch = method.batch(STORE, np.arange(method.rows(STORE)), step())
    found = method.loss(batch, step())

    queries, table = method.encoded(batch.inputs, step()).double(), method.encoder.table.double()
    a = (queries * table[batch.targets]).sum(1)
    b = (queries[:, None] * table[negatives[0]]).sum(2)
    if method.settings.loss == "bce":
        beta = 1.0
        if method.settings.calibration:
            beta = (3 / 39) * (0.75 * (1 - 39 / 3) + 39 / 3)
        wanted = beta * F.softplus(-a) + F.softplus(b).sum(1)
    elif method.settings.loss == "bpr":
        wanted = F.softplus(b - a[:, None]).mean(1)
    else:
        log_q = method.sampler.log_q()
        if log_q is not None:
            a, b = a - log_q[batch.targets], b - log_q[negatives[0]]
        wanted = torch.cat([a[:, None], b], 1).logsumexp(1) - a
    assert found.item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_mixed_negatives_are_vectors_with_a_gradient_to_both_items(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"negatives__sampler": "mixgcf+", "negatives__count": 2, "negatives__top_m": 4}
    method = made("sasrec-sampled", method__rows=rows, **named)
    questions: list[Question] = []
    draw = method.sampler.draw
    monkeypatch.setattr(
        method.sampler, "draw", lambda question: questions.append(question) or draw(question)
    )
    batch = method.batch(STORE, np.arange(method.rows(STORE)), step())
    method.loss(batch, step(1)).backward()
    gradient = method.encoder.table.grad
    assert gradient is not None
    method.zero_grad()

    [question] = questions
    dns = load_config("r2ns", sets={"negatives.sampler": "dns+", "negatives.top_m": 4}, flags=DATA)
    other = build_sampler(dataclasses.replace(dns.negatives, count=2))
    assert method._histories is not None
    other.prepare(method._histories)
    drawn = other.draw(question)  # what DNS+ draws, it mixes
    queries, table = method.encoded(batch.inputs, step()), method.encoder.table
    share = philox.uniform(question.seed, 26, torch.arange(len(drawn)))[:, None]
    a = (queries * table[batch.targets]).sum(1, keepdim=True)
    b = (queries[:, None] * table[drawn]).sum(2)
    mixed = share * a + (1 - share) * b
    (F.softplus(-a[:, 0]) + F.softplus(mixed).sum(1)).mean().backward()
    assert table.grad is not None
    torch.testing.assert_close(gradient, table.grad, rtol=1e-4, atol=1e-6)


def test_calibration_goes_from_plain_to_the_share_that_is_drawn() -> None:
    assert calibrated(0.0, 4, 401) == 1.0
    assert calibrated(1.0, 4, 401) == pytest.approx(0.01)
    assert calibrated(0.5, 4, 401) == pytest.approx(0.505)


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_the_sampler_is_asked_for_every_target_with_the_queries_of_the_loss(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = made(method__rows=rows, encoder__extra_rows=1)
    question = asked(method, monkeypatch, epoch=1)
    batch = method.batch(STORE, np.arange(method.rows(STORE)), step())
    assert torch.equal(question.queries, method.encoded(batch.inputs, step()))  # dropout and all
    assert not question.queries.requires_grad and not question.items.requires_grad
    assert len(question.items) == ITEMS + 1  # rows that are no items are classes of the loss
    assert torch.equal(question.positives, STORE.values[question.rows.places])
    lengths = [min(len(row) - 1, 6) if rows == "positions" else len(row) - 1 for row in ROWS]
    assert len(question.positives) == sum(lengths)
    # the items up to a target, however many the encoder reads
    for b, (place, sequence) in enumerate(
        zip(question.rows.places.tolist(), question.rows.sequences.tolist(), strict=True)
    ):
        seen = question.rows.seen
        history = STORE.values[STORE.offsets[sequence] : place + 1].tolist()
        assert sorted(seen.ids[seen.offsets[b] : seen.offsets[b + 1]]) == sorted(set(history))


def test_the_seed_is_a_function_of_run_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for seed in (0, 1):
        for epoch, number in ((1, 5), (1, 6), (2, 7)):  # steps are counted over all epochs
            method = made(training__seed=seed)
            batch = method.batch(STORE, np.arange(3), step())
            with monkeypatch.context() as patch:
                patch.setattr(
                    method.sampler,
                    "draw",
                    lambda question: (
                        seeds.add(question.seed)
                        or torch.zeros(len(question.positives), 1, dtype=torch.int64)
                    ),
                )
                method.loss(batch, step(epoch, number))
                method.loss(batch, step(epoch, number))
    assert len(seeds) == 6


def test_the_warm_up_is_uniform_and_then_the_sampler_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made(method__warmup_epochs=2, negatives__decay=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(method.sampler, "draw", lambda question: pytest.fail("too early"))
        batch = method.batch(STORE, np.arange(3), step())
        method.loss(batch, step(1))
    assert [method.facts(epoch) for epoch in (0, 1)] == [{}, {}]
    assert [method.facts(epoch)["top_m"] for epoch in (2, 3, 30)] == [200, 122, 5]
    monkeypatch.setattr(method.warm, "draw", lambda question: pytest.fail("too late"))
    method.loss(batch, step(2))


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sets", "candidates", "top_m"),
    [
        ("No-WS", {"method__warmup_epochs": 0}, (8, 8), 16),
        ("No-GR", {"negatives__recall": 0, "negatives__pool": 16}, (16, None), 16),
        ("No-DI", {"negatives__pool": 0}, (None, 8), 8),
        ("No-CRR", {"negatives__decay": 0.0}, (8, 8), 5),
    ],
)
def test_the_ablations_are_settings(
    name: str,
    sets: dict[str, Any],
    candidates: tuple[int | None, int | None],
    top_m: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def spy(queries: Tensor, items: Tensor, pool: Tensor | None, m: int, **more: Any) -> Tensor:
        shared = more["shared"]
        calls.append((pool if pool is None else pool.shape[1], shared, m))
        return torch.zeros(len(queries), dtype=torch.int64)

    monkeypatch.setattr("seqrec.negatives.r2ns.rerank_negatives", spy)
    method = made(**{"negatives__pool": 8, "negatives__recall": 8, **sets})
    epoch = method.settings.warmup_epochs
    assert epoch == (0 if name == "No-WS" else 1)
    method.loss(method.batch(STORE, np.arange(4), step()), step(epoch))
    [(pool, shared, m)] = calls
    assert (pool, None if shared is None else len(shared)) == candidates and m == top_m


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            {"negatives.sampler": "uniform", "negatives.pool": 9},
            "negatives.pool is not read while negatives.sampler is uniform "
            "(--set negatives.pool=9, --set negatives.sampler=uniform); "
            "leave it out, or make negatives.sampler dns, mixgcf, dns+, mixgcf+ or r2ns",
        ),
        (
            {"negatives.sampler": "dns", "negatives.top_m": 9},
            "negatives.top_m is not read while negatives.sampler is dns "
            "(--set negatives.top_m=9, --set negatives.sampler=dns); "
            "leave it out, or make negatives.sampler dns+, mixgcf+ or r2ns",
        ),
        (
            {"method.loss": "bpr", "method.calibration": 0.5},
            "method.calibration is not read while method.loss is bpr "
            "(--set method.calibration=0.5, --set method.loss=bpr); "
            "leave it out, or make method.loss bce",
        ),
        (
            {"negatives.pool": 0, "negatives.recall": 0},
            "r2ns has no candidates: negatives.pool is 0 (--set negatives.pool=0, "
            "--set negatives.recall=0, {default}); give it some",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(sets: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("r2ns", sets=sets, flags=DATA)
    default = Path(seqrec.__file__).parent / "presets" / "r2ns" / "default.toml"
    assert str(caught.value) == expected.format(default=default)


def test_a_configuration_holds_the_keys_of_its_sampler_only() -> None:
    text = load_config("r2ns", sets={"negatives.sampler": "uniform"}, flags=DATA).to_toml()
    table = text.partition("[negatives]\n")[2].partition("\n\n")[0]
    assert [line.partition(" ")[0] for line in table.splitlines()] == [
        "sampler", "count", "exclude",
    ]  # fmt: skip
    for sampler in ("uniform", "dns+", "r2ns"):
        first = load_config("r2ns", sets={"negatives.sampler": sampler}, flags=DATA)
        assert Config.from_toml(first.to_toml(), "config.toml") == first
    assert "[negatives]" not in load_config("sasrec", flags=DATA).to_toml()
