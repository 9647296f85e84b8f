"""The encoder's C++ against dense float64 torch, with the masks drawn from their definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from encoder_oracles import assert_close, assert_gradients, factors, generator
from torch import Tensor, nn

from seqrec.encoders import fused
from seqrec_kernels import jagged_attention, native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@pytest.fixture(params=native.versions() if native.missing() is None else [])
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.version(request.param):
        yield request.param


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_is_the_operator_with_a_seed_of_the_generator(p: float) -> None:
    offsets = offsets_of([3, 1, 18, 5])
    qkv = torch.randn(27, 192, generator=generator(1))
    seed, _ = fused.draws(p, generator())
    wanted = jagged_attention(qkv, None, None, offsets, heads=2, dropout=p, seed=seed)
    assert torch.equal(fused.self_attention(qkv, offsets, 2, p, generator()), wanted)
    plain = jagged_attention(qkv, None, None, offsets, heads=2)
    assert torch.equal(fused.self_attention(qkv, offsets, 2, p, None), plain)
    assert torch.equal(plain, wanted) == (p == 0)
    queries, pairs = qkv[:4, :64], qkv[:, 64:]
    wanted = jagged_attention(
        queries, pairs, None, offsets, heads=2, last=True, dropout=p, seed=seed
    )
    assert torch.equal(fused.last_attention(queries, pairs, offsets, 2, p, generator()), wanted)


RATES = pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
SHAPES = pytest.mark.parametrize("shape", [(0, 16), (1, 16), (300, 64), (129, 80), (5, 192)])


def normed(z: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = z - z.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    return unit * norm.weight.double() + norm.bias.double()


def random_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-12)
    with torch.no_grad():
        norm.weight.normal_(generator=generator(2))
        norm.bias.normal_(generator=generator(3))
    return norm


@RATES
@SHAPES
def test_residual_sums_and_their_norms(shape: tuple[int, int], p: float, version: str) -> None:
    x, h = torch.randn(2, *shape, generator=generator(1)).unbind()
    bias, norm = torch.randn(shape[1], generator=generator(4)), random_norm(shape[1])
    inputs = [t.requires_grad_() for t in (x, h, bias)]
    kept = factors(*shape, p, generator())
    total = x.double() + kept * (h.double() + bias.double())

    alone = fused.residual(x, h, bias, p, generator())
    assert_close(alone, total)
    assert_gradients(alone, total, inputs)
    inputs += [norm.weight, norm.bias]
    found = fused.residual_norm(x, h, bias, norm, p, generator())
    assert_close(found, normed(total, norm))
    assert_gradients(found, normed(total, norm), inputs)
    # both results used, and each alone
    both = fused.sum_and_norm(x, h, bias, norm, p, generator())
    assert torch.equal(both[0], alone) and torch.equal(both[1], found)
    assert_gradients(torch.cat(both), torch.cat((total, normed(total, norm))), inputs)
    assert_gradients(both[1], normed(total, norm), inputs)
    assert_gradients(both[0], total, inputs[:3])


@RATES
@SHAPES
def test_the_norm_before_dropout(shape: tuple[int, int], p: float, version: str) -> None:
    x, norm = torch.randn(shape, generator=generator(1)).requires_grad_(), random_norm(shape[1])
    found = fused.dropped_norm(x, norm, p, generator())
    wanted = factors(*shape, p, generator()) * normed(x.double(), norm)
    assert_close(found, wanted)
    assert_gradients(found, wanted, [x, norm.weight, norm.bias])


@RATES
@SHAPES
def test_the_embedding(shape: tuple[int, int], p: float, version: str) -> None:
    """Rows that occur often, once and never."""
    rows, width = shape
    table = torch.randn(13, width, generator=generator(1)).requires_grad_()
    places = torch.randn(7, width, generator=generator(2)).requires_grad_()
    items = torch.randint(0, 11, (rows,), generator=generator(3))
    at = torch.arange(rows) % 6
    found = fused.embed(table, items, places, at, 1.5, p, generator())
    kept = factors(rows, width, p, generator())
    wanted = kept * (1.5 * table.double()[items] + places.double()[at])
    assert_close(found, wanted)
    assert_gradients(found, wanted, [table, places])


def test_the_number_of_threads_changes_no_bit() -> None:
    lengths = torch.randint(1, 40, (300,), generator=generator(4)).tolist()
    n = sum(lengths)
    x, h = torch.randn(2, n, 64, generator=generator(1)).unbind()
    qkv = torch.randn(n, 192, generator=generator(2)).requires_grad_()
    table = torch.randn(90, 64, generator=generator(3)).requires_grad_()
    items = torch.randint(0, 90, (n,), generator=generator(6))
    bias = torch.zeros(64, requires_grad=True)
    norm = nn.LayerNorm(64)
    x.requires_grad_()

    def everything() -> list[Tensor]:
        attended = fused.self_attention(qkv, offsets_of(lengths), 2, 0.5, generator())
        drawn = fused.embed(table, items, table, items, 2.0, 0.5, generator())
        summed = fused.residual(drawn, h, bias, 0.5, generator())
        normed = fused.residual_norm(x, summed, bias, norm, 0.5, generator())
        inputs = [qkv, x, table, bias, norm.weight, norm.bias]
        total = (attended * h).sum() + (normed * h).sum()
        return [attended, normed, *torch.autograd.grad(total, inputs)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(3)
        shared = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_strided_inputs_and_expanded_gradients() -> None:
    norm = nn.LayerNorm(8 * 2)
    x, h = torch.randn(32, 8, generator=generator(1)).t().requires_grad_().chunk(2, 1)
    found = fused.residual_norm(x, h, norm.bias, norm, 0.0, None)
    dense = fused.residual_norm(x.contiguous(), h.contiguous(), norm.bias, norm, 0.0, None)
    assert torch.equal(found, dense)
    grads = torch.autograd.grad(found.sum(), [x, h])
    others = torch.autograd.grad(dense, [x, h], torch.ones(8, 16))
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


def test_where_it_runs() -> None:
    assert fused.runs(torch.zeros(0, 64), 2)
    assert not fused.runs(torch.zeros(1, 48), 2)  # heads of 24
    assert not fused.runs(torch.zeros(1, 8))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not fused.runs(torch.zeros(1, 64, dtype=dtype))
    assert not fused.runs(torch.zeros(1, 64, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.runs(torch.zeros(1, 64))


def test_no_version_falls_back_to_the_portable_kernels() -> None:
    """They are found by the version's name: one that none of theirs begins would run the portable
    ones, correctly and slowly."""
    x, h = torch.randn(2, 40, 96, generator=generator(1)).unbind()
    norm = nn.LayerNorm(96)
    bits = {}
    for name in native.versions():
        with native.version(name):
            bits[name] = fused.residual_norm(x, h, h[0], norm, 0.0, None)
    # one that multiplies, rounds and adds against those that round once
    portable = bits.pop("portable")
    assert not any(torch.equal(portable, found) for found in bits.values())
    if "avx512_bf16" in bits:
        assert torch.equal(bits["avx512_bf16"], bits["avx512"])


def test_a_second_derivative_is_refused() -> None:
    qkv = torch.randn(8, 96, generator=generator(1)).requires_grad_()
    norm = nn.LayerNorm(96)
    for found in (
        fused.residual_norm(qkv, qkv, qkv[0], norm, 0.0, None),
        fused.residual(qkv, qkv, qkv[0], 0.5, generator()).sin(),
        fused.embed(qkv, torch.arange(8), qkv, torch.arange(8), 1.0, 0.0, None),
    ):
        (once,) = torch.autograd.grad(found.sin().sum(), qkv, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            once.sum().backward()
