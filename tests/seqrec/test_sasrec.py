"""SASRec on jagged batches against a plain, padded float64 implementation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from little import config, jagged
from plain_sasrec import Plain, positions, prefixes
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.config import Config
from seqrec.data.store import SequenceStore, epoch_order
from seqrec.encoders import fused
from seqrec.encoders.layers import dropout
from seqrec.encoders.sasrec import SASRec
from seqrec.methods import build, sasrec
from seqrec.methods.base import Step
from seqrec.methods.sasrec import SASRecMethod

ITEMS = 11
LENGTHS = [1, 6, 2, 13, 4, 9, 1]


def sequences(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS, n).tolist() for n in lengths]


ROWS = sequences(LENGTHS)
STORE = SequenceStore(jagged(*ROWS))


def small(dim: int = 8, **sets: Any) -> Config:
    return config(encoder__dropout=0.0, encoder__max_length=8, encoder__dim=dim, **sets)


@pytest.fixture(params=[8, 32], ids=["torch", "fused"])
def dim(request: pytest.FixtureRequest) -> int:
    """A width that only torch takes, and one for the C++."""
    return int(request.param)


@pytest.fixture
def method(dim: int) -> SASRecMethod:
    """Weights far from their initial values, so that no bias or norm is neutral."""
    made = build(small(dim), ITEMS)
    assert isinstance(made, SASRecMethod)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=_generator(1)))
    return made


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _step() -> Step:
    return Step(0, 0, _generator(0))


# Encoding -----------------------------------------------------------------------------------------


def test_outputs_and_all_gradients_are_those_of_the_plain_implementation(
    method: SASRecMethod,
) -> None:
    batch = STORE.batch(np.arange(len(ROWS)), 8)
    found = method.encoder(batch)
    plain = Plain(method, heads=2)
    wanted = torch.cat(plain.hidden([row[-8:] for row in ROWS]))
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)

    weight = torch.randn(wanted.shape, generator=_generator(2))
    (found * weight).sum().backward()
    for name, expected in plain.gradients((wanted * weight).sum()).items():
        gradient = method.get_parameter(name).grad
        assert gradient is not None
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 * scale, msg=name)


def test_alone_or_in_a_batch_in_any_order_a_sequence_is_encoded_the_same(
    method: SASRecMethod,
) -> None:
    together = method.encoder(STORE.batch(np.arange(len(ROWS)), 8)).split(
        [min(n, 8) for n in LENGTHS]
    )
    order = np.array([4, 0, 3, 6, 2, 5, 1])
    shuffled = method.encoder(STORE.batch(order, 8)).split([min(LENGTHS[b], 8) for b in order])
    for row in range(len(ROWS)):
        alone = method.encoder(STORE.batch(np.array([row]), 8))
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shuffled[order.tolist().index(row)], alone, rtol=1e-5, atol=1e-5)


def test_a_place_sees_its_past_only(method: SASRecMethod) -> None:
    row = [1, 2, 3, 4, 5, 6]
    whole = method.encoder(SequenceStore(jagged(row)).batch(np.array([0]), 8))
    for place in range(len(row)):
        other = [*row[:place], 10, *row[place + 1 :]]
        changed = method.encoder(SequenceStore(jagged(other)).batch(np.array([0]), 8))
        torch.testing.assert_close(changed[:place], whole[:place], rtol=1e-6, atol=1e-6)
        # ... and all of it: each later place notices the change
        assert ((changed[place:] - whole[place:]).abs().amax(1) > 1e-4).all()


def test_only_the_last_max_length_items_count(method: SASRecMethod) -> None:
    long = [7, 7, 7, 9, 1, 2, 3, 4, 5, 6, 8]
    queries = [
        method.queries(SequenceStore(jagged(row)).batch(np.array([0]), 8))
        for row in (long, long[-8:], [0, 0, *long[-8:]])
    ]
    assert torch.equal(queries[0], queries[1])
    assert torch.equal(queries[0], queries[2])
    shorter = method.queries(SequenceStore(jagged(long[-7:])).batch(np.array([0]), 8))
    assert not torch.allclose(queries[0], shorter, atol=1e-3)


def test_a_query_is_the_state_of_the_last_item(method: SASRecMethod) -> None:
    batch = STORE.batch(np.arange(len(ROWS)), 8)
    plain = Plain(method, heads=2).hidden([row[-8:] for row in ROWS])
    wanted = torch.stack([states[-1] for states in plain])
    torch.testing.assert_close(method.queries(batch).double(), wanted, rtol=2e-5, atol=2e-5)
    assert torch.equal(method.items(), method.encoder.table)


def test_initial_scores_have_unit_variance_and_come_from_the_seed() -> None:
    wide = config(encoder__dim=64, encoder__dropout=0.0)
    method = build(wide, 2000)
    queries = method.queries(SequenceStore(jagged([1, 2, 3], [4, 5])).batch(np.arange(2), 6))
    assert 0.8 < float((queries @ method.items().T).detach().var()) < 1.2
    again = build(wide, 2000)
    training = dataclasses.replace(wide.training, seed=4)
    other = build(dataclasses.replace(wide, training=training), 2000)
    for mine, same, different in zip(
        method.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(mine, same)
        assert mine.dim() == 1 or not torch.equal(mine, different)


def test_dropout_is_on_only_with_a_generator_and_follows_its_seed() -> None:
    dropped = config(encoder__dropout=0.5)
    encoder = build(dropped, ITEMS).get_submodule("encoder")
    assert isinstance(encoder, SASRec)
    batch = STORE.batch(np.arange(len(ROWS)), 6)
    assert torch.equal(encoder(batch), encoder(batch))
    first = encoder(batch, _generator(1))
    assert torch.equal(first, encoder(batch, _generator(1)))
    assert not torch.equal(first, encoder(batch, _generator(2)))
    assert not torch.equal(first, encoder(batch))


def test_fused_or_not_dropout_has_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two draw other masks of the same distribution at the same places."""
    made = build(small(32, encoder__layers=2), ITEMS)
    assert isinstance(made, SASRecMethod)
    made.encoder.dropout = 0.25
    for module in made.encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.25
    batch, source = STORE.batch(np.arange(len(ROWS)), 8), _generator(5)

    def draws() -> Tensor:
        return torch.stack([made.encoder(batch, source) for _ in range(800)]).detach()

    mine = draws()
    monkeypatch.setattr(fused, "runs", lambda *_: False)
    theirs = draws()
    deviation = ((mine.var(0) + theirs.var(0)) / 800).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * deviation + 1e-6).all()
    assert 0.97 < float(mine.std(0).mean() / theirs.std(0).mean()) < 1.03


def test_dropout_stands_where_the_formula_has_it() -> None:
    """One sequence, one rectangle: the draws come in the order in which they are written here."""
    method = build(config(encoder__dropout=0.4, encoder__layers=1), ITEMS)
    assert isinstance(method, SASRecMethod)
    row = [3, 1, 4, 1, 5]
    generator = _generator(9)
    plain = Plain(method, heads=2)
    name = "encoder.layers.0"

    def drop(x: Tensor) -> Tensor:
        return dropout(x, 0.4, generator)

    table = plain.weights["encoder.table"]
    x = drop(math.sqrt(8) * table[row] + plain.weights["encoder.places"][:5])
    q, k, v = plain.linear(
        plain.norm(x, f"{name}.attention_norm"), f"{name}.attention.input"
    ).split(8, -1)
    heads = [part.view(5, 2, 4).transpose(0, 1) for part in (q, k, v)]
    scores = heads[0] @ heads[1].mT / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    mixed = (drop(scores.softmax(-1)[None])[0] @ heads[2]).transpose(0, 1).reshape(5, 8)
    x = x + drop(plain.linear(mixed, f"{name}.attention.output"))
    inner = plain.linear(plain.norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward.first")
    x = x + drop(plain.linear(drop(inner.clamp(min=0)), f"{name}.feed_forward.second"))
    found = method.encoder(SequenceStore(jagged(row)).batch(np.array([0]), 6), _generator(9))
    torch.testing.assert_close(found.double(), plain.norm(x, "encoder.norm"), rtol=2e-5, atol=2e-5)


# What is trained on -------------------------------------------------------------------------------


def test_the_loss_at_positions_is_cross_entropy_over_the_pairs_by_hand(
    method: SASRecMethod,
) -> None:
    rows = np.array([3, 0, 1])  # of the trainable sequences: those of one event are not among
    trainable = [row for row in ROWS if len(row) > 1]
    assert method.rows(STORE) == len(trainable)
    loss = method.loss(method.batch(STORE, rows, _step()), _step())

    pairs = list(positions([trainable[row] for row in rows], 8))
    plain = Plain(method, heads=2)
    hidden = torch.cat(plain.hidden([inputs for inputs, _ in pairs]))
    targets = torch.tensor([target for _, wanted in pairs for target in wanted])
    expected = F.cross_entropy(hidden @ plain.weights["encoder.table"].T, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_at_prefixes_is_cross_entropy_over_the_prefixes_by_hand(dim: int) -> None:
    method = build(small(dim, method__rows="prefixes"), ITEMS)
    assert isinstance(method, SASRecMethod)
    everything = list(prefixes(ROWS, 8))
    assert method.rows(STORE) == len(everything)
    rows = np.array([0, 11, 5, len(everything) - 1, 17, 2])
    loss = method.loss(method.batch(STORE, rows, _step()), _step())

    chosen = [everything[row] for row in rows]
    plain = Plain(method, heads=2)
    hidden = torch.stack([states[-1] for states in plain.hidden([inputs for inputs, _ in chosen])])
    targets = torch.tensor([target for _, target in chosen])
    expected = F.cross_entropy(hidden @ plain.weights["encoder.table"].T, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_an_epoch_visits_every_training_pair_once(rows: str) -> None:
    method = build(small(method__rows=rows), ITEMS)
    n = method.rows(STORE)
    found = []
    order = epoch_order(3, 5, n)
    for start in range(0, n, 4):
        inputs, targets = method.batch(STORE, order[start : start + 4], _step())
        if rows == "positions":
            found += list(zip(inputs.items.tolist(), targets.tolist(), strict=True))
        else:
            found += list(zip(inputs.items[inputs.last()].tolist(), targets.tolist(), strict=True))
    if rows == "positions":  # the last 8 pairs of a user
        wanted = [pair for row in ROWS for pair in list(itertools.pairwise(row))[-8:]]
    else:
        wanted = [(inputs[-1], target) for inputs, target in prefixes(ROWS, 8)]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_a_whole_step_has_the_gradients_of_the_dense_one(rows: str, dim: int) -> None:
    """Batch, encoder, fused loss, backward against padded float64 with F.cross_entropy."""
    method = build(small(dim, method__rows=rows), ITEMS)
    assert isinstance(method, SASRecMethod)
    n = method.rows(STORE)
    method.loss(method.batch(STORE, np.arange(n), _step()), _step()).backward()

    plain = Plain(method, heads=2)
    table = plain.weights["encoder.table"]
    if rows == "positions":
        pairs = list(positions(ROWS, 8))
        hidden = torch.cat(plain.hidden([inputs for inputs, _ in pairs]))
        targets = torch.tensor([target for _, wanted in pairs for target in wanted])
    else:
        cut = list(prefixes(ROWS, 8))
        hidden = torch.stack([states[-1] for states in plain.hidden([inputs for inputs, _ in cut])])
        targets = torch.tensor([target for _, target in cut])
    expected = plain.gradients(F.cross_entropy(hidden @ table.T, targets))
    assert set(expected) == {name for name, _ in method.named_parameters()}
    for name, gradient in expected.items():
        mine = method.get_parameter(name).grad
        assert mine is not None
        torch.testing.assert_close(mine.double(), gradient, rtol=1e-5, atol=1e-5, msg=name)


# No step waits for the device ---------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Fails on every operator whose result's shape or host value is in a tensor's values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if any(name == waiting or name.startswith(f"{waiting}_") for waiting in self.WAITING):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_batch_loss_and_backward_never_read_a_device_value(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device nothing has a value: whatever would wait for one raises.

    Proves it for our layer (store, batch, layout, encoder, method) with the device's layout. The
    fused loss is replaced here; its own tests answer for it. Dropout is off: there is no generator
    on the meta device.
    """

    def loss(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        assert queries.is_meta and items.is_meta and targets.is_meta
        return F.cross_entropy(queries @ items.T, targets)

    monkeypatch.setattr(sasrec, "catalog_cross_entropy", loss)
    method = build(small(method__rows=rows), ITEMS).to("meta")
    store = SequenceStore(jagged(*ROWS), "meta")
    batch = method.batch(store, np.arange(method.rows(store)), _step())
    found = method.loss(batch, _step())
    assert found.is_meta and found.shape == ()
    found.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name
    with pytest.raises(RuntimeError):
        found.item()  # the guard is one: a read does raise


def test_clipping_and_the_optimizer_never_read_a_value() -> None:
    """What the trainer does behind the backward; on the CPU every host read is an operator."""
    method = build(small(), ITEMS)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, fused=True)
    total = torch.zeros((), dtype=torch.float64)
    loss = method.loss(method.batch(STORE, np.arange(4), _step()), _step())
    loss.backward()
    before = copy.deepcopy(method.state_dict())
    with NoWaiting():
        torch.nn.utils.clip_grad_norm_(method.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
    assert any(not torch.equal(x, before[name]) for name, x in method.state_dict().items())
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        total.item()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ["positions", "prefixes"])
def test_a_whole_step_on_a_gpu_waits_for_nothing(rows: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    method = build(config(method__rows=rows, encoder__dropout=0.3), ITEMS).to("cuda")
    store = SequenceStore(jagged(*ROWS), "cuda")
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, fused=True)
    generator = torch.Generator("cuda")
    for turn in range(3):  # the first one loads libraries, which may wait
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            generator.manual_seed(turn)
            batch = method.batch(store, np.arange(method.rows(store)), _step())
            method.loss(batch, Step(0, turn, generator)).backward()
            torch.nn.utils.clip_grad_norm_(method.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
