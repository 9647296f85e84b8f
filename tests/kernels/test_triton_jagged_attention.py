"""The triton kernels of jagged attention against loops in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import oracles
import pytest
import torch
import triton_device
from attention_calls import LENGTHS, MASKS, Call, attend, call, fate, gradients, oracle
from torch import Tensor
from triton_device import DEVICE

from seqrec_kernels import backend, jagged_attention

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton
tiny_tiles = triton_device.tiny_tiles

MASK = pytest.mark.parametrize("mask", MASKS)


def there(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def moved(made: Call) -> Call:
    return Call(*(there(t) for t in made[:4]), made.options)


def run(made: Call, upstream: Tensor, form: str = "apart") -> list[Tensor]:
    """The output and all gradients by our kernels, back on the CPU."""

    def of_form(*tensors: Tensor, **options: Any) -> Tensor:
        return attend(form, *tensors, **options)

    return [t.cpu() for t in gradients(moved(made), there(upstream), function=of_form)]


def agrees_on_triton(made: Call, form: str = "apart") -> None:
    """As near to float64 as dense float32 torch is, twice over."""
    upstream = torch.randn(made.queries.shape)
    right = gradients(made, upstream, torch.float64, oracle)
    with backend("reference"):
        plain = gradients(made, upstream)
    ours = run(made, upstream, form)
    for name, our, true, dense in zip(("out", "dq", "dk", "dv"), ours, right, plain, strict=True):
        assert our.isfinite().all(), name
        oracles.close(our, true, dense, name)


# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@MASK
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_agrees_with_float64(
    tiny_tiles: None, lengths: list[int], mask: str, dropout: float
) -> None:
    agrees_on_triton(call(lengths, 2, 5, spare=3, dropout=dropout, seed=-5, **MASKS[mask]))


@MASK
@pytest.mark.parametrize(
    "form, heads, size", [("apart", 3, 1), ("pairs", 1, 17), ("packed", 2, 32)]
)
def test_agrees_with_float64_in_every_form(
    tiny_tiles: None, form: str, heads: int, size: int, mask: str
) -> None:
    agrees_on_triton(call([31, 0, 33, 2, 50], heads, size, dropout=0.2, **MASKS[mask]), form)


@pytest.mark.parametrize("mask, size", [("causal", 50), ("both ways", 16), ("last", 64)])
def test_agrees_with_float64_in_the_tiles_it_ships_with(mask: str, size: int) -> None:
    agrees_on_triton(call([64, 1, 123, 0, 7], 1, size, dropout=0.3, spare=5, **MASKS[mask]))


@MASK
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(tiny_tiles: None, dtype: torch.dtype, mask: str) -> None:
    """No further from float64 than torch's own attention on the same numbers, twice over."""
    made = call([9, 1, 34], 2, 16, **MASKS[mask])
    q, k, v = (t.to(dtype) for t in made.tensors)
    made = made._replace(queries=q, keys=k, values=v)
    upstream = torch.randn(made.queries.shape).to(dtype)
    right = gradients(made, upstream, torch.float64, oracle)
    plain = gradients(made, upstream, function=oracle)
    for name, our, true, dense in zip("oqkv", run(made, upstream), right, plain, strict=True):
        assert our.dtype == dtype
        oracles.close(our, true, dense, name, floor=torch.finfo(dtype).eps)


@MASK
def test_rows_of_no_sequence_are_ignored_and_get_zeros(tiny_tiles: None, mask: str) -> None:
    """Whatever stands in them: NaN here, also in the query of an empty sequence."""
    made = call([6, 0, 11], 2, 8, spare=40, dropout=0.2, **MASKS[mask])
    last = mask == "last"
    upstream = torch.randn(made.queries.shape)
    expected = run(made, upstream)
    made.keys[17:], made.values[17:] = torch.nan, torch.nan
    made.queries[1 if last else slice(17, None)] = torch.nan
    upstream[1 if last else slice(17, None)] = torch.nan
    out, dq, dk, dv = run(made, upstream)
    nobody = [1] if last else range(17, 57)
    assert not out[nobody].any() and not dq[nobody].any()
    assert not dk[17:].any() and not dv[17:].any()
    for ours, theirs in zip((out, dq, dk, dv), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_extreme_scores_stay_finite(tiny_tiles: None) -> None:
    for scale, mask in product((0.0, 30.0, 1e4), MASKS):
        made = call([40, 1, 3], 1, 4, scale=scale, **MASKS[mask])
        assert all(t.isfinite().all() for t in run(made, torch.randn(made.queries.shape)))


# ---- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, -3, 2**62 + 1])
def test_weights_are_dropped_by_their_counters(tiny_tiles: None, seed: int) -> None:
    """The bits that the CPU draws: forward by the oracle's words, all gradients by its masks."""
    tokens, dropped = 29, round(0.4 * 65536)
    offsets = there(torch.tensor([0, 3, tokens]))
    zeros, values = torch.zeros(tokens, tokens), torch.eye(tokens)
    out = jagged_attention(
        there(zeros), there(zeros), there(values), offsets, causal=False, dropout=0.4,
        seed=there(torch.tensor(seed)),
    ).cpu()  # fmt: skip
    for i in range(3, tokens):
        fates = [fate(seed, i, j) >= dropped for j in range(3, tokens)]
        assert (out[i, 3:] > 0).tolist() == fates


# ---- promises ------------------------------------------------------------------------------------


@MASK
def test_only_the_gradients_that_are_needed_and_the_same_ones(tiny_tiles: None, mask: str) -> None:
    made = call([6, 0, 40], 1, 8, spare=1, dropout=0.3, **MASKS[mask])
    upstream = torch.randn(made.queries.shape)
    everything = run(made, upstream)[1:]
    for wanted in product([False, True], repeat=3):
        inputs = [there(t.clone()).requires_grad_(w)
                  for t, w in zip(made.tensors, wanted, strict=True)]  # fmt: skip
        out = jagged_attention(*inputs, there(made.offsets), **made.options)
        if any(wanted):
            out.backward(there(upstream))
        for t, want, whole in zip(inputs, wanted, everything, strict=True):
            assert (torch.equal(t.grad.cpu(), whole)) if want else t.grad is None


def test_repeating_a_call_repeats_its_bits_and_tiles_hold_any_sequences() -> None:
    made = call([5, 0, 70, 3, 1, 1, 9], 2, 16, dropout=0.2)
    upstream = torch.randn(made.queries.shape)
    one, two = run(made, upstream), run(made, upstream)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_strided_inputs_and_none_is_written(tiny_tiles: None) -> None:
    made = call([5, 18], 2, 10, dropout=0.3)
    upstream = torch.ones(made.queries.shape)
    dense = run(made, upstream)
    ways: dict[str, Any] = {
        "rows apart": lambda t: torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, :20],
        "columns apart": lambda t: torch.stack((t, torch.full_like(t, torch.nan)), 2)[:, :, 0],
    }
    for how, way in ways.items():
        inputs = [way(there(t)).detach().requires_grad_() for t in made.tensors]
        copies = [t.detach().clone() for t in inputs]
        out = jagged_attention(*inputs, there(made.offsets), **made.options)
        found = [out, *torch.autograd.grad(out.sum(), inputs)]
        assert all(torch.equal(x.cpu(), y) for x, y in zip(found, dense, strict=True)), how
        assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True)), how


def test_offsets_that_nobody_has_read_may_point_anywhere(tiny_tiles: None) -> None:
    """No memory is touched that is not the tensors': the interpreter would fail there."""
    compiled = torch.compile(jagged_attention, fullgraph=True, backend="aot_eager")
    for wild in ([0, 2**40, -(2**40), 11], [-5, 3, 4, 11], [0, 3, 8, 12]):
        for mask in MASKS.values():
            made = moved(call([3, 6, 2], 1, 4, **mask)._replace(offsets=torch.tensor(wild)))
            found = gradients(made, there(torch.ones(made.queries.shape)), function=compiled)
            assert [t.shape for t in found[1:]] == [t.shape for t in made.tensors]


@MASK
def test_opcheck(mask: str) -> None:
    from seqrec_kernels.ops.jagged_attention.problem import Problem

    made = moved(call([5, 0, 4], 2, 6, spare=2, **MASKS[mask]))
    causal, last = mask == "causal", mask == "last"
    problem = Problem(
        *oracles.leaves(*made.tensors), made.offsets, there(torch.tensor(3)), 2, causal, last,
        20000, None,
    )  # fmt: skip
    operator = torch.ops.seqrec_kernels.jagged_attention.default
    torch.library.opcheck(operator, (*problem, [True] * 3, "triton"))


def test_heads_that_are_too_wide_are_refused_with_the_reason() -> None:
    x, offsets = there(torch.randn(3, 300)), there(torch.tensor([0, 3]))
    with pytest.raises(RuntimeError, match=r"a head of 300 numbers of torch\.float32"):
        jagged_attention(x, x, x, offsets)
