"""The encoder's products in C++ against float64 torch, and no further from it than torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from encoder_oracles import assert_close, factors, generator
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.encoders import fused, products
from seqrec_kernels import native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))

# a block has 96 rows, and there are at most 16 chunks of them
ROWS = [0, 1, 50, 95, 123, 257, 1700]
WIDTHS = [(16, 16), (64, 256), (80, 48)]
NARROW = pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])


@pytest.fixture(params=native.versions() if native.missing() is None else [])
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.version(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read before it is written shows as NaN."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any, **options: Any) -> Tensor:
            made = allocate(*arguments, **options)
            return made.fill_(torch.nan) if made.dtype.is_floating_point else made

        return run

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def autocast(narrow: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=narrow)


def layers(width: int, inner: int) -> tuple[nn.Linear, nn.Linear]:
    """Scaled so that inner numbers are of size 1."""
    first, second = nn.Linear(width, inner), nn.Linear(inner, width)
    with torch.no_grad():
        for number, layer in enumerate((first, second)):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator(number))
            layer.bias.normal_(generator=generator(number + 2))
    return first, second


def rows_of(rows: int, width: int, seed: int = 8) -> Tensor:
    return torch.randn(rows, width, generator=generator(seed)).requires_grad_()


def assert_no_worse(
    call: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], narrow: bool
) -> None:
    """Value and gradients of `call` against `plain` in float64: within twice what `plain` in the
    same precision is off, and a little of the largest number."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with autocast(narrow):
        found, beside = call(*inputs), plain(*inputs)
    wanted = plain(*exact)
    grad = torch.randn(wanted.shape, generator=generator(9))
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    mine = [found, *torch.autograd.grad(found, inputs, grad)]
    theirs = [beside, *torch.autograd.grad(beside, inputs, grad.to(beside.dtype))]
    true = [wanted, *torch.autograd.grad(wanted, exact, grad.double())]
    for one, other, right in zip(mine, theirs, true, strict=True):
        assert one.dtype == torch.float32 and one.isfinite().all()
        if right.numel():
            off, beside_off = ((t.detach().double() - right).abs().max() for t in (one, other))
            assert off <= 2 * beside_off + right.abs().max() * (2**-8 if narrow else 1e-6)


@NARROW
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [*WIDTHS, (64, 192)])
def test_a_projection(shape: tuple[int, int], rows: int, narrow: bool, version: str) -> None:
    weight = rows_of(shape[1], shape[0], 1)
    bias = torch.randn(shape[1], generator=generator(2), requires_grad=True)
    x = rows_of(rows, shape[0])
    assert_no_worse(products.linear, F.linear, [x, weight, bias], narrow)
    assert_no_worse(products.linear, F.linear, [x, weight], narrow)


@NARROW
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_feed_forward_with_gelu(
    widths: tuple[int, int], rows: int, narrow: bool, version: str
) -> None:
    first, second = layers(*widths)

    def fused_one(x: Tensor, *_: Tensor) -> Tensor:
        return products.gelu_feed_forward(x, first, second)

    def plain(x: Tensor, into: Tensor, bias: Tensor, out_of: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, into, bias)), out_of)

    inputs = [rows_of(rows, widths[0]), first.weight, first.bias, second.weight]
    assert_no_worse(fused_one, plain, inputs, narrow)


@NARROW
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_feed_forward_with_relu_and_dropout(
    widths: tuple[int, int], rows: int, p: float, narrow: bool, version: str
) -> None:
    """The mask is that of stream 3, a row a row and a column a column of the inner numbers.

    What is activated is an odd number of halves, exact in bfloat16's products too: rounding moves
    nothing over the edge.
    """
    first, second = layers(*widths)
    kept = factors(rows, widths[1], p, generator())
    with torch.no_grad():
        first.weight.copy_(first.weight.sign())
        first.bias.copy_(first.bias.round() + 0.5)
    x = rows_of(rows, widths[0]).detach().round().requires_grad_()

    def fused_one(x: Tensor, *_: Tensor) -> Tensor:
        return products.relu_feed_forward(x, first, second, p, generator())

    def plain(x: Tensor, into: Tensor, bias: Tensor, out_of: Tensor) -> Tensor:
        h = F.relu(F.linear(x, into, bias))
        return F.linear(kept.to(h.dtype) * h, out_of)

    inputs = [x, first.weight, first.bias, second.weight]
    assert_no_worse(fused_one, plain, inputs, narrow)


def unit_layers() -> tuple[nn.Linear, nn.Linear]:
    """Such that a feed-forward is its activation."""
    both = nn.Linear(16, 16), nn.Linear(16, 16)
    for layer in both:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return both


def test_gelu_far_out(version: str) -> None:
    x = torch.tensor([[-1e30, -60.0, -14.0, -0.0, 0.0, 14.0, 60.0, 1e30] * 2]).requires_grad_()
    found = products.gelu_feed_forward(x, *unit_layers())
    assert_close(found, F.gelu(x.detach().double()))
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert_close(slope, torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0] * 2]))


def test_gelu_and_its_slope_where_they_bend(version: str) -> None:
    """No further from the true ones than twice torch in the same dtype."""
    x = torch.linspace(-8, 8, 16 * 5001).view(-1, 16).requires_grad_()
    triples = []
    for call, given in (
        (lambda x: products.gelu_feed_forward(x, *unit_layers()), x),
        (F.gelu, x),
        (F.gelu, x.detach().double().requires_grad_()),
    ):
        found = call(given)
        triples.append((found, *torch.autograd.grad(found.sum(), given)))
    for mine, theirs, true in zip(*triples, strict=True):
        error = (mine.double() - true).abs().max()
        assert error <= 2 * (theirs.double() - true).abs().max() + 1e-6


def test_relu_at_its_edge(version: str) -> None:
    """Its slope at 0 is 0, and what is no number stays none, in its row alone."""
    x = torch.zeros(3, 16)
    x[0, 0], x[1] = -torch.inf, 2.0
    x[2, 1] = torch.nan
    x.requires_grad_()
    h, grad = x.detach().clone(), torch.ones(3, 16)
    d_x, d_parameters, y = torch.empty(3, 16), torch.empty(2 * 256 + 16), torch.empty(3, 16)
    first, second = unit_layers()
    seed, dropped = fused.draws(0.0, None)
    torch.ops.seqrec_native.feed_forward_forward(
        h, first.weight, first.bias, second.weight, True, seed, dropped, False, None, y
    )
    assert y[2].isnan().all() and not y[1].isnan().any()
    torch.ops.seqrec_native.feed_forward_backward(
        grad, h, first.weight, first.bias, second.weight, h, True, seed, dropped, False, d_x,
        d_parameters,
    )  # fmt: skip
    assert d_x[0].tolist() == [0.0] * 16 and d_x[1].tolist() == [1.0] * 16


def everything(x: Tensor, narrow: bool) -> list[Tensor]:
    """A projection and both feed-forwards one after the other, and all gradients."""
    first, second = layers(64, 256)
    inputs = [x, first.weight, first.bias, second.weight]
    with autocast(narrow):
        y = products.relu_feed_forward(x, first, second, 0.5, generator())
        y = y + products.gelu_feed_forward(x, first, second)
        y = products.linear(y, first.weight, first.bias)
    return [y, *torch.autograd.grad(y.square().sum(), inputs)]


@NARROW
def test_the_number_of_threads_changes_no_bit(narrow: bool) -> None:
    x = rows_of(2500, 64)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            found.append(everything(x, narrow))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_a_processor_without_narrow_products_multiplies_wide(version: str) -> None:
    x = rows_of(100, 64)
    same = all(map(torch.equal, everything(x, True), everything(x, False)))
    assert same == (version != "avx512_bf16")


def test_no_version_falls_back_to_the_portable_kernels() -> None:
    x, bits = rows_of(40, 64), {}
    for name in native.versions():
        with native.version(name):
            bits[name] = everything(x, False)[0]
    # one that multiplies, rounds and adds against those that round once
    portable = bits.pop("portable")
    assert not any(torch.equal(portable, found) for found in bits.values())


def test_what_is_computed_without_gradients_has_the_same_bits() -> None:
    x, (first, second) = rows_of(300, 64), layers(64, 256)
    with torch.no_grad():
        alone = products.gelu_feed_forward(x, first, second)
    found = products.gelu_feed_forward(x, first, second)
    assert torch.equal(alone, found) and found.requires_grad and not alone.requires_grad


def test_strided_inputs_and_expanded_gradients() -> None:
    x = torch.randn(64, 130, generator=generator(1)).t()[::2].requires_grad_()
    wide = torch.randn(64, 512, generator=generator(2)).t()[::2].requires_grad_()  # [256, 64]
    found = products.linear(x, wide)
    dense = products.linear(x.contiguous(), wide.contiguous())
    assert torch.equal(found, dense)
    grads = torch.autograd.grad(found.sum(), [x, wide])
    others = torch.autograd.grad(dense, [x, wide], torch.ones(65, 256))
    assert all(map(torch.equal, grads, others))


def test_where_the_c_does_not_run_torch_multiplies() -> None:
    x, weight = torch.randn(5, 8, generator=generator(1)), torch.randn(8, 8)
    assert torch.equal(products.linear(x, weight, weight[0]), F.linear(x, weight, weight[0]))


def test_a_second_derivative_is_refused() -> None:
    x, (first, second) = rows_of(8, 64), layers(64, 16)
    for found in (
        products.linear(x, first.weight),
        products.gelu_feed_forward(x, first, second),
        products.relu_feed_forward(x, first, second, 0.5, generator()),
    ):
        (once,) = torch.autograd.grad(found.sin().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            once.sum().backward()
