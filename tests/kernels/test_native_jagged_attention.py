"""Jagged attention in C++, in every instruction set, against float64 and against itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import oracles
import pytest
import torch
from attention_calls import FORMS, MASKS, agrees, attend, call, cases, fate, gradients, oracle
from native_versions import threads, version  # noqa: F401 (fixtures)

from seqrec_kernels import jagged_attention
from seqrec_kernels import native as library

MASK = pytest.mark.parametrize("mask", MASKS)
DROPS = pytest.mark.parametrize("dropout", [0.0, 0.3])


def test_agrees_with_float64() -> None:
    for made in cases((2, 16), (1, 5)):
        agrees(made)


@pytest.mark.parametrize(
    "heads, size", [(1, 1), (5, 3), (2, 8), (3, 15), (3, 17), (1, 50), (2, 64), (1, 130)]
)
def test_agrees_with_float64_in_odd_widths(heads: int, size: int) -> None:
    """No number beside a head is read or written: its neighbour would show it."""
    for mask, form in product(MASKS, FORMS):
        agrees(call([1, 15, 16, 17, 0, 33], heads, size, dropout=0.2, **MASKS[mask]), form)


@DROPS
@MASK
def test_agrees_with_float64_in_long_sequences(mask: str, dropout: float) -> None:
    """Over 256 queries the gradients of keys and values come together in parts."""
    agrees(call([255, 3, 512, 260, 123], 1, 16, dropout=dropout, spare=1, **MASKS[mask]))


@MASK
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32_and_rounded_once(
    dtype: torch.dtype, mask: str
) -> None:
    made = call([9, 1, 34], 2, 12, spare=2, dropout=0.2, **MASKS[mask])
    q, k, v = (t.to(dtype) for t in made.tensors)
    made = made._replace(queries=q, keys=k, values=v)
    upstream = torch.randn(made.queries.shape).to(dtype)
    ours = gradients(made, upstream)
    half, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    for our, true in zip(ours, gradients(made, upstream, torch.float64, oracle), strict=True):
        assert our.dtype == dtype
        assert ((our.double() - true).abs() <= half * 1.01 * true.abs() + 5e-6 + tiny).all()


def test_weights_are_dropped_by_their_counters_wherever_a_sequence_begins() -> None:
    for first, length in product((0, 1, 7, 8, 63), (1, 9, 57, 58, 130)):
        tokens = first + length
        offsets = torch.tensor([0, first, tokens])
        out = jagged_attention(
            torch.zeros(tokens, tokens), torch.zeros(tokens, tokens), torch.eye(tokens), offsets,
            causal=False, dropout=0.4, seed=11,
        )  # fmt: skip
        i = tokens - 1
        fates = [fate(11, i, j) >= round(0.4 * 65536) for j in range(first, tokens)]
        assert (out[i, first:] > 0).tolist() == fates


@DROPS
@MASK
def test_neither_threads_nor_repetition_change_a_bit(
    dropout: float,
    mask: str,
    threads: int,  # noqa: F811
) -> None:
    lengths = torch.randint(0, 60, (90,)).tolist()
    made = call(lengths, 2, 12, spare=9, dropout=dropout, seed=3, **MASKS[mask])
    upstream = torch.randn(made.queries.shape)
    ours, again = gradients(made, upstream), gradients(made, upstream)
    torch.set_num_threads(1)
    alone = gradients(made, upstream)
    torch.set_num_threads(threads)
    for a, b, c in zip(ours, again, alone, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@DROPS
@MASK
def test_a_gradient_does_not_depend_on_which_others_are_wanted(dropout: float, mask: str) -> None:
    made = call([40, 300, 1], 2, 8, dropout=dropout, **MASKS[mask])
    upstream = torch.randn(made.queries.shape)
    everything = gradients(made, upstream)[1:]
    for wanted in product([False, True], repeat=3):
        if not any(wanted):
            continue
        inputs = [t.clone().requires_grad_(w) for t, w in zip(made.tensors, wanted, strict=True)]
        out = jagged_attention(*inputs, made.offsets, **made.options)
        out.backward(upstream)
        for t, whole, want in zip(inputs, everything, wanted, strict=True):
            assert (t.grad is not None and torch.equal(t.grad, whole)) if want else t.grad is None


@MASK
def test_any_stride_is_read_and_nothing_else_is(mask: str) -> None:
    made = call([5, 18], 2, 10, dropout=0.3, **MASKS[mask])
    dense = gradients(made, torch.ones(made.queries.shape))
    ways: dict[str, Any] = {
        "rows apart": lambda t: torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, :20],
        "columns apart": lambda t: torch.stack((t, torch.full_like(t, torch.nan)), 2)[:, :, 0],
        "transposed": lambda t: t.t().contiguous().t(),
    }
    for how, way in ways.items():
        q, k, v = (way(t).detach().requires_grad_() for t in made.tensors)
        out = jagged_attention(q, k, v, made.offsets, **made.options)
        found = torch.autograd.grad(out.sum(), (q, k, v))  # an expanded gradient
        for ours, theirs in zip((out, *found), dense, strict=True):
            assert torch.equal(ours, theirs), how


def test_the_packed_forms_give_the_same_bits() -> None:
    for mask in MASKS.values():
        made = call([9, 40], 2, 16, dropout=0.2, spare=2, **mask)
        upstream = torch.randn(made.queries.shape)
        found = []
        for form in FORMS:
            inputs = oracles.leaves(*made.tensors)
            out = attend(form, *inputs, made.offsets, **made.options)
            found.append([out, *torch.autograd.grad(out, inputs, upstream)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_no_version_falls_back_to_the_portable_kernels() -> None:
    """They are found by the version's name: one that none of theirs begins would run the portable
    ones, correctly and slowly."""
    made = call([40], 2, 16)
    bits = {}
    for name in library.versions():
        with library.version(name):
            bits[name] = jagged_attention(*made[:4], heads=2)
    # one that multiplies, rounds and adds against those that round once
    portable = bits.pop("portable")
    assert not any(torch.equal(portable, found) for found in bits.values())
    if "avx512_bf16" in bits:
        assert torch.equal(bits["avx512_bf16"], bits["avx512"])
