"""The post-norm encoder against the published one: padded from the left, dense, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from little import config, jagged
from torch import Tensor
from torch.nn import functional as F

from seqrec.config import Config, load_config
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.encoders import ENCODERS, build_encoder, fused
from seqrec.encoders.base import Encoder
from seqrec.encoders.layers import dropout
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec.methods.sasrec import SASRecMethod
from seqrec_kernels import native

ITEMS, LENGTH, HEADS = 11, 8, 2
RNG = np.random.default_rng(0)
ROWS = [RNG.integers(0, ITEMS, n).tolist() for n in (1, 6, 2, 8, 4, 8, 1, 7)]
STORE = SequenceStore(jagged(*ROWS))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[8, 32], ids=["torch", "fused"])
def dim(request: pytest.FixtureRequest) -> int:
    """A width that the C++ takes, and one that it does not."""
    return int(request.param)


def small(name: str = "sasrec-postnorm", rate: float = 0.0, dim: int = 8, **sets: object) -> Config:
    return config(
        encoder__name=name,
        encoder__dropout=rate,
        encoder__max_length=LENGTH,
        encoder__dim=dim,
        encoder__heads=HEADS,
        encoder__extra_rows=2,
        **sets,
    )


def made(name: str = "sasrec-postnorm", rate: float = 0.0, dim: int = 8) -> Encoder:
    """Weights far from their initial values, so that no bias or norm is neutral."""
    encoder = build_encoder(ITEMS, small(name, rate, dim).encoder, generator(0))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1)))
    return encoder


def everything(rows: list[list[int]] = ROWS) -> JaggedBatch:
    return SequenceStore(jagged(*rows)).batch(np.arange(len(rows)), LENGTH)


class Published:
    """The encoder as the papers' code computes it, from our weights in float64."""

    def __init__(self, encoder: Encoder) -> None:
        self.weights = {
            name: p.detach().double().requires_grad_() for name, p in encoder.named_parameters()
        }

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-12)
        return self.weights[f"{name}.weight"] * scaled + self.weights[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def hidden(self, rows: list[list[int]]) -> list[Tensor]:
        """[n, D] for each row."""
        table = self.weights["table"]
        # the padding row of our table is the first behind the items
        padded = torch.tensor([[ITEMS] * (LENGTH - len(row)) + row for row in rows])
        real = torch.tensor([[False] * (LENGTH - len(row)) + [True] * len(row) for row in rows])
        x = self.norm(table[padded] + self.weights["places"], "norm")
        seen = torch.ones(LENGTH, LENGTH).tril().bool() & real[:, None, :]
        mask = torch.where(seen, 0.0, -10000.0).double()[:, None]
        dim = table.shape[1]
        for layer in range(2):
            name = f"layers.{layer}"
            q, k, v = (
                part.view(len(rows), LENGTH, HEADS, -1).transpose(1, 2)
                for part in self.linear(x, f"{name}.attention.input").split(dim, -1)
            )
            scores = q @ k.mT / math.sqrt(dim // HEADS) + mask
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = self.norm(
                x + self.linear(mixed, f"{name}.attention.output"), f"{name}.attention_norm"
            )
            inner = self.linear(x, f"{name}.first")
            inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
            x = self.norm(x + self.linear(inner, f"{name}.second"), f"{name}.feed_forward_norm")
        return [x[row, LENGTH - len(items) :] for row, items in enumerate(rows)]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(self.weights.values()))
        return dict(zip(self.weights, found, strict=True))


def assert_gradients(encoder: Encoder, wanted: dict[str, Tensor]) -> None:
    assert set(wanted) == {name for name, _ in encoder.named_parameters()}
    for name, expected in wanted.items():
        mine = encoder.get_parameter(name).grad
        assert mine is not None, name
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-5 * scale, msg=name)


def assert_same_moments(one: Tensor, other: Tensor) -> None:
    for power in (1, 2):
        mine, theirs = one**power, other**power
        error = ((mine.var(0) + theirs.var(0)) / len(one)).sqrt()
        assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-6).all()


def test_outputs_and_all_gradients_are_the_published_ones(dim: int) -> None:
    encoder = made(dim=dim)
    found = encoder(everything())
    plain = Published(encoder)
    wanted = torch.cat(plain.hidden(ROWS))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=generator(2))
    (found * weight).sum().backward()
    assert_gradients(encoder, plain.gradients((wanted * weight).sum()))


def test_last_places_and_their_gradients_are_the_published_ones(dim: int) -> None:
    encoder = made(dim=dim)
    found = encoder.last(everything())
    plain = Published(encoder)
    wanted = torch.stack([states[-1] for states in plain.hidden(ROWS)])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=generator(2))
    (found * weight).sum().backward()
    assert_gradients(encoder, plain.gradients((wanted * weight).sum()))


def test_a_training_step_has_the_gradients_of_the_dense_one(dim: int) -> None:
    """The extra rows are classes of the softmax: their only gradient, and they have one."""
    method = build(small(dim=dim, method__rows="prefixes"), ITEMS)
    assert isinstance(method, SASRecMethod)
    pairs = [(row[:end], row[end]) for row in ROWS for end in range(1, len(row))]
    step = Step(0, 0, generator(0))
    method.loss(method.batch(STORE, np.arange(method.rows(STORE)), step), step).backward()
    plain = Published(method.encoder)
    hidden = torch.stack([states[-1] for states in plain.hidden([row for row, _ in pairs])])
    logits = hidden @ plain.weights["table"].T
    wanted = plain.gradients(F.cross_entropy(logits, torch.tensor([item for _, item in pairs])))
    assert_gradients(method.encoder, wanted)
    assert wanted["table"][ITEMS:].abs().min() > 1e-9


def test_extra_rows_are_never_recommended() -> None:
    method = build(small(), ITEMS)
    assert method.items().shape == (ITEMS, 8)
    assert method.get_parameter("encoder.table").shape == (ITEMS + 2, 8)


@pytest.mark.parametrize("name", ENCODERS)
def test_last_is_forward_at_the_last_place(name: str, dim: int) -> None:
    encoder = made(name, dim=dim)
    for rows in (ROWS, ROWS[:1], [ROWS[3]], [[1]] * 5):
        batch = everything(rows)
        every = encoder(batch)
        torch.testing.assert_close(encoder.last(batch), every[batch.last()], rtol=1e-5, atol=1e-5)
    weight = torch.randn(len(ROWS), dim, generator=generator(3))
    batch = everything()
    (encoder(batch)[batch.last()] * weight).sum().backward()
    wanted = {k: p.grad.double() for k, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    (encoder.last(batch) * weight).sum().backward()
    assert_gradients(encoder, wanted)


@pytest.mark.parametrize("name", ENCODERS)
def test_last_with_dropout_is_forward_on_average(name: str, dim: int) -> None:
    """Over many masks: the same first and second moments, and a seed decides the bits."""
    encoder = made(name, rate=0.25, dim=dim)
    batch = everything()
    with torch.no_grad():
        assert torch.equal(encoder.last(batch, generator(4)), encoder.last(batch, generator(4)))
        source = generator(5)
        one = torch.stack([encoder.last(batch, source) for _ in range(800)])
        other = torch.stack([encoder(batch, source)[batch.last()] for _ in range(800)])
    assert_same_moments(one, other)


@pytest.mark.parametrize("name", ENCODERS)
def test_concatenated_batches_are_encoded_as_they_are_alone(name: str, dim: int) -> None:
    encoder = made(name, dim=dim)
    parts = [everything(ROWS[:3]), everything(ROWS[2:]), everything(ROWS[:3])]
    for encode in (encoder.forward, encoder.last):
        together = encode(JaggedBatch.concatenated(parts))
        alone = torch.cat([encode(part) for part in parts])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_fused_or_not_dropout_has_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws differ; mean and mean square of every output, over many of them, do not."""
    encoder, batch, source = made(rate=0.25, dim=32), everything(), generator(5)
    if not fused.runs(encoder.table, HEADS):
        pytest.skip(str(native.missing()))
    with torch.no_grad():
        mine = torch.stack([encoder.last(batch, source) for _ in range(800)])
        monkeypatch.setattr(fused, "runs", lambda x, heads=1: False)
        theirs = torch.stack([encoder.last(batch, source) for _ in range(800)])
    assert mine.var(0).min() > 1e-4
    assert_same_moments(mine, theirs)


def test_autocast_narrows_the_products_only(dim: int) -> None:
    encoder = made(dim=dim)
    exact = encoder(everything())
    with torch.autocast("cpu", torch.bfloat16):
        found, last = encoder(everything()), encoder.last(everything())
    assert found.dtype == last.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    torch.testing.assert_close(last, found[everything().last()], rtol=0, atol=0.1)


def test_places_count_from_the_end() -> None:
    """Prefixes of one sequence share no state: an item's place depends on what follows it."""
    encoder = made()
    long = encoder(everything([[3, 1, 4]]))
    short = encoder(everything([[3, 1]]))
    assert (long[:2] - short).abs().amax(1).min() > 1e-3


def test_dropout_stands_where_the_formula_has_it() -> None:
    """One sequence, one rectangle: the draws come in the order in which they are written here."""
    encoder = made(rate=0.4)
    row = [3, 1, 4, 1, 5]
    plain, source = Published(encoder), generator(9)

    def drop(x: Tensor) -> Tensor:
        return dropout(x, 0.4, source)

    x = drop(plain.norm(plain.weights["table"][row] + plain.weights["places"][-5:], "norm"))
    for layer in range(2):
        name = f"layers.{layer}"
        q, k, v = (
            part.view(5, HEADS, -1).transpose(0, 1)
            for part in plain.linear(x, f"{name}.attention.input").split(8, -1)
        )
        scores = (q @ k.mT / math.sqrt(4)).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        mixed = (drop(scores.softmax(-1)[None])[0] @ v).transpose(0, 1).flatten(1)
        mixed = drop(plain.linear(mixed, f"{name}.attention.output"))
        x = plain.norm(x + mixed, f"{name}.attention_norm")
        inner = drop(plain.linear(F.gelu(plain.linear(x, f"{name}.first")), f"{name}.second"))
        x = plain.norm(x + inner, f"{name}.feed_forward_norm")
    found = encoder(everything([row]), generator(9))
    torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "n_items", "parameters"),
    [
        ("official-sports", 18357, 1278272),
        ("official-beauty", 12101, 877888),
        ("official-toys", 11924, 866560),
        ("official-yelp", 20033, 1385536),
    ],
)
def test_the_official_presets_have_the_published_size_and_initial_weights(
    preset: str, n_items: int, parameters: int
) -> None:
    asked = load_config("sasrec", preset=preset, flags={"data.path": "-"})
    method = build(asked, n_items)
    assert sum(p.numel() for p in method.parameters()) == parameters
    for name, parameter in method.named_parameters():
        if parameter.dim() == 2:  # N(0, 0.02^2)
            share = 5 / math.sqrt(2 * parameter.numel())
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=share), name
            assert abs(float(parameter.detach().mean())) < 0.02 * 5 / math.sqrt(parameter.numel())
        else:
            expected = 1.0 if name.endswith("norm.weight") else 0.0
            assert torch.equal(parameter.detach(), torch.full_like(parameter, expected)), name
