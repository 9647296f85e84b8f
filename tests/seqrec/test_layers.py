"""Dropout by random bits, and attention on rectangles against a plain float64 one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

from seqrec.counters import DROPOUT, WEIGHTS, derive
from seqrec.data.store import SequenceStore
from seqrec.encoders.layers import CausalSelfAttention, FeedForward, dropout
from seqrec.encoders.layout import Layout


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_at_its_rate(p: float) -> None:
    """Chi-square with one degree of freedom; 10.8 is exceeded once in a thousand seeds."""
    n = 400_000
    kept = int((dropout(torch.ones(n), p, seeded(11)) != 0).sum())
    exact = round(p * 65536) / 65536
    expected = n * exact, n * (1 - exact)
    chi = (n - kept - expected[0]) ** 2 / expected[0] + (kept - expected[1]) ** 2 / expected[1]
    assert chi < 10.8


@pytest.mark.parametrize("p", [0.2, 0.5, 1 / 3])
def test_dropout_is_unbiased_everywhere_in_the_word(p: float) -> None:
    """Four elements share a 64-bit draw: each of the four places must have the same rate."""
    y = dropout(torch.ones(4 * 50_000), p, seeded(5)).view(-1, 4)
    deviation = math.sqrt(p / (1 - p) / len(y))
    assert (y.mean(0) - 1).abs().max() < 4 * deviation
    assert abs(float(y.mean()) - 1) < 4 * deviation / 2
    # and the four are independent of each other: 2x2 tables by chi-square
    kept = (y != 0).double()
    centred = kept - kept.mean(0)
    correlation = (centred.T @ centred) / centred.square().sum(0).mean()
    off = correlation - torch.diag(correlation.diag())
    assert off.abs().max() < 4 / math.sqrt(len(y))


def test_dropout_scales_by_exactly_what_it_keeps() -> None:
    y = dropout(torch.ones(1000), 0.3, seeded(0))
    dropped = round(0.3 * 65536)
    assert set(y.unique().tolist()) == {0.0, float(np.float32(65536 / (65536 - dropped)))}


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_without_a_generator_or_a_rate_dropout_is_the_identity(p: float) -> None:
    x = torch.randn(7)
    assert dropout(x, p, None) is x
    assert dropout(x, 0.0, seeded(1)) is x


def test_dropout_just_below_one_is_finite() -> None:
    y = dropout(torch.ones(1000), 1 - 1e-9, seeded(0))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 3), (2, 3, 4, 5), (0, 4)])
def test_dropout_of_any_shape_and_its_gradient_is_its_mask(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    y = dropout(x, 0.5, seeded(3))
    again = dropout(torch.ones(shape, dtype=torch.float64), 0.5, seeded(3))
    assert y.shape == x.shape
    assert torch.equal(y, x * again)
    if y.numel():
        y.backward(torch.ones_like(y))
        assert x.grad is not None and torch.equal(x.grad, again)


def test_the_seed_of_a_step_decides_its_bits() -> None:
    def mask(*place: int) -> Tensor:
        return dropout(torch.ones(256), 0.5, seeded(derive(*place)))

    places = [(0, DROPOUT, 0, 0), (0, DROPOUT, 0, 1), (0, DROPOUT, 1, 0), (1, DROPOUT, 0, 0)]
    masks = [mask(*place) for place in (*places, (0, WEIGHTS, 0, 0))]
    assert torch.equal(masks[0], mask(*places[0]))
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 64 < int((one != other).sum()) < 192


def test_derived_seeds_differ_and_fit() -> None:
    seeds = {
        derive(seed, purpose, epoch, step)
        for seed in (0, 1, 2**63 - 1)
        for purpose in (WEIGHTS, DROPOUT)
        for epoch in range(20)
        for step in range(20)
    }
    assert len(seeds) == 3 * 2 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)


LENGTHS = [3, 1, 12, 5, 4]


def dense_attention(module: CausalSelfAttention, x: Tensor) -> Tensor:
    """One row [n, D] in float64, head by head, place by place, from the definition."""
    dim = x.shape[1]
    width = dim // module.heads
    weight, bias = module.input.weight.double(), module.input.bias.double()
    q, k, v = (x @ weight.T + bias).split(dim, 1)
    rows = []
    for place in range(len(x)):
        heads = []
        for head in range(module.heads):
            of = slice(head * width, (head + 1) * width)
            scores = k[: place + 1, of] @ q[place, of] / math.sqrt(width)
            heads.append(scores.softmax(0) @ v[: place + 1, of])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ module.output.weight.double().T + module.output.bias.double()


def test_attention_is_the_definition_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    module = CausalSelfAttention(8, 2, dropout=0.0)
    store = SequenceStore(jagged(*([0] * n for n in LENGTHS)))
    layout = Layout(store.batch(np.arange(len(LENGTHS)), 50))
    x = torch.randn(sum(LENGTHS), 8, requires_grad=True)
    weight = torch.randn(sum(LENGTHS), 8)

    wanted = torch.cat([dense_attention(module, row) for row in x.double().split(LENGTHS)])
    inputs = [x, *module.parameters()]
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    for generator in (None, seeded(0)):
        found = module(x, layout, generator)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(
            torch.autograd.grad((found * weight).sum(), inputs), expected, strict=True
        ):
            torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-4, atol=1e-5)


def test_attention_with_dropout_is_the_plain_one_on_average() -> None:
    """The weights path with bits (training) against the fused path (evaluation)."""
    torch.manual_seed(0)
    module = CausalSelfAttention(8, 2, dropout=0.25)
    store = SequenceStore(jagged(*([0] * n for n in LENGTHS)))
    layout = Layout(store.batch(np.arange(len(LENGTHS)), 50))
    x = torch.randn(sum(LENGTHS), 8)
    generator = seeded(1)
    draws = torch.stack([module(x, layout, generator) for _ in range(600)]).detach()
    error = (draws.mean(0) - module(x, layout, None)).abs()
    assert (error < 5 * draws.std(0) / math.sqrt(600) + 1e-5).all()
    assert draws.std(0).max() > 0.01


def test_feed_forward_is_its_formula_and_drops_after_both_products() -> None:
    torch.manual_seed(0)
    module = FeedForward(4, dropout=0.5)
    x = torch.randn(9, 4)
    hidden = (x @ module.first.weight.T + module.first.bias).clamp(min=0)
    torch.testing.assert_close(
        module(x, None), hidden @ module.second.weight.T + module.second.bias
    )
    generator = seeded(2)
    hidden = dropout(hidden, 0.5, generator)
    wanted = dropout(hidden @ module.second.weight.T + module.second.bias, 0.5, generator)
    torch.testing.assert_close(module(x, seeded(2)), wanted)
