"""Jagged attention against loops in float64, at its edges, and with wrong arguments."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_calls import FORMS, LENGTHS, MASKS, agrees, attend, call, fate, gradients, oracle
from torch import Tensor

from seqrec_kernels import backend, jagged_attention
from seqrec_kernels.ops.jagged_attention import blocked

MASK = pytest.mark.parametrize("mask", MASKS)
DROPS = pytest.mark.parametrize("dropout", [0.0, 0.3])
NAMES = pytest.mark.parametrize("name", ["blocked", "reference"])

# ---- values and gradients ------------------------------------------------------------------------


@DROPS
@MASK
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_agrees_with_float64_in_tiny_tiles(
    tiny_tiles: None, lengths: list[int], mask: str, dropout: float
) -> None:
    agrees(call(lengths, 2, 5, spare=3, dropout=dropout, seed=-5, scale=1.5, **MASKS[mask]))


@DROPS
@MASK
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads, size", [(1, 1), (3, 7), (1, 50), (2, 64)])
def test_agrees_with_float64_in_real_tiles(
    heads: int, size: int, form: str, mask: str, dropout: float
) -> None:
    lengths = [31, 32, 33, 0, 1, 50]
    agrees(call(lengths, heads, size, dropout=dropout, seed=2**40 + 3, **MASKS[mask]), form)


@MASK
def test_long_sequences(mask: str) -> None:
    agrees(call([123, 512, 255], 1, 16, **MASKS[mask]))


@DROPS
@MASK
def test_in_one_rectangle_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, mask: str, dropout: float
) -> None:
    groups = blocked._groups
    monkeypatch.setattr(blocked, "_groups", lambda *given, read: groups(*given, read=False))
    lengths = [3, 0, 17, 9]
    for more in ({}, {"max_length": 17}, {"max_length": 40}):
        agrees(call(lengths, 2, 5, spare=4, dropout=dropout, **more, **MASKS[mask]))


@NAMES
@MASK
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32_and_rounded_once(
    tiny_tiles: None, dtype: torch.dtype, mask: str, name: str
) -> None:
    made = call([9, 1, 14], 2, 12, spare=2, dropout=0.2, **MASKS[mask])
    made = made._replace(
        **{n: t.to(dtype) for n, t in zip(made._fields, made.tensors, strict=False)}
    )
    upstream = torch.randn(made.queries.shape).to(dtype)
    with backend(name):
        ours = gradients(made, upstream)
    half = torch.finfo(dtype).eps / 2
    for our, true in zip(ours, gradients(made, upstream, torch.float64, oracle), strict=True):
        assert our.dtype == dtype
        assert ((our.double() - true).abs() <= half * 1.001 * true.abs() + 5e-6).all()


# ---- what it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_one_sequence_is_torchs_attention(causal: bool) -> None:
    made = call([23], 4, 8, causal=causal)
    q, k, v = (t.view(23, 4, 8).transpose(0, 1) for t in made.tensors)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1).flatten(1)
    torch.testing.assert_close(jagged_attention(*made[:4], **made.options), theirs)


@NAMES
def test_last_is_the_last_row_of_both_masks(name: str) -> None:
    made = call([4, 1, 19, 6], 2, 8, spare=2)
    ends = made.offsets[1:] - 1
    with backend(name):
        one = jagged_attention(made.queries[ends], *made[1:4], heads=2, last=True)
        for causal in (True, False):
            every = jagged_attention(*made[:4], heads=2, causal=causal)
            torch.testing.assert_close(one, every[ends])


@NAMES
@DROPS
@MASK
def test_rows_of_no_sequence_are_ignored_and_get_zeros(
    tiny_tiles: None, mask: str, dropout: float, name: str
) -> None:
    """Whatever stands in them: NaN here, also in the query of an empty sequence."""
    made = call([6, 0, 11], 2, 8, spare=5, dropout=dropout, **MASKS[mask])
    last = mask == "last"
    made.keys[17:], made.values[17:] = torch.nan, torch.nan
    made.queries[1 if last else slice(17, None)] = torch.nan
    upstream = torch.randn(made.queries.shape)
    with backend(name):
        out, dq, dk, dv = gradients(made, upstream)
        short = made._replace(keys=made.keys[:17], values=made.values[:17])
        if not last:
            short = short._replace(queries=made.queries[:17])
        alone = gradients(short, upstream[: len(short.queries)])
    nobody = [1] if last else range(17, 22)
    assert not out[nobody].any() and not dq[nobody].any()
    assert not dk[17:].any() and not dv[17:].any()
    for whole, part in zip((out, dq, dk, dv), alone, strict=True):
        torch.testing.assert_close(whole[: len(part)], part)


def test_sequences_do_not_see_each_other(tiny_tiles: None) -> None:
    made = call([7, 12, 3], 2, 4, causal=False)
    whole = jagged_attention(*made[:4], **made.options)
    for first, end in ((0, 7), (7, 19), (19, 22)):
        q, k, v = (t[first:end] for t in made.tensors)
        alone = jagged_attention(q, k, v, torch.tensor([0, end - first]), **made.options)
        torch.testing.assert_close(whole[first:end], alone)


@NAMES
@MASK
def test_extreme_scores_stay_finite(tiny_tiles: None, mask: str, name: str) -> None:
    for scale in (0.0, 1e-20, 30.0, 1e4):
        made = call([40, 1, 3], 1, 4, scale=scale, **MASKS[mask])
        upstream = torch.randn(made.queries.shape)
        with backend(name):
            ours = gradients(made, upstream)
        right = gradients(made, upstream, torch.float64, oracle)
        assert all(t.isfinite().all() for t in ours)
        # float32 knows a score of s^2 to 6e-8 s^2, and its weight as well
        rounding = min(1e-6 * max(scale, 1) ** 2, 2.0)
        for our, true in zip(ours, right, strict=True):
            size = max(float(true.abs().max()), scale)
            torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=rounding * size + 1e-30)


# ---- dropout -------------------------------------------------------------------------------------


def weights_of(name: str, lengths: list[int], heads: int, **options: Any) -> Tensor:
    """What each key's value is multiplied with, [heads, N, N], times what the query sees."""
    tokens = sum(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    zeros, size = torch.zeros(tokens, heads * tokens), tokens
    values = torch.eye(tokens).repeat(1, heads)
    with backend(name):
        out = jagged_attention(zeros, zeros, values, offsets, heads=heads, **options)
    return out.view(tokens, heads, size).transpose(0, 1)


@NAMES
@pytest.mark.parametrize("seed", [0, -3, 2**62 + 1])
def test_weights_are_dropped_by_their_counters(tiny_tiles: None, seed: int, name: str) -> None:
    kept = weights_of(name, [5, 20], 2, causal=False, dropout=0.4, seed=seed)
    dropped = round(0.4 * 65536)
    for h in range(2):
        for i in range(25):
            first, end = (0, 5) if i < 5 else (5, 25)
            fates = [fate(seed, 2 * i + h, j) >= dropped for j in range(first, end)]
            assert (kept[h, i, first:end] > 0).tolist() == fates
    scale = 65536 / (65536 - dropped)
    torch.testing.assert_close(kept.amax(2)[:, 5:], torch.full((2, 20), scale / 20))


def test_the_share_that_is_dropped() -> None:
    kept = weights_of("blocked", [64] * 5, 2, causal=False, dropout=0.3, seed=9)
    inside = torch.stack([kept[:, 64 * b : 64 * b + 64, 64 * b : 64 * b + 64] for b in range(5)])
    share, count = float((inside == 0).double().mean()), inside.numel()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
    # whoever sees the same keys still draws for himself
    for one, other in ((inside[0], inside[1]), (inside[:, 0], inside[:, 1])):
        both = float(((one == 0) & (other == 0)).double().mean())
        assert abs(both - 0.09) < 0.01
    # and the mean is that without dropout
    assert float(inside.sum(-1).mean()) == pytest.approx(1, abs=0.01)


def test_seeds_are_ints_or_tensors_and_different() -> None:
    made = call([9, 30], 2, 8, dropout=0.5)
    q, k, v, offsets, options = made
    one = jagged_attention(q, k, v, offsets, **options, seed=7)
    assert torch.equal(one, jagged_attention(q, k, v, offsets, **options, seed=torch.tensor(7)))
    assert torch.equal(one, jagged_attention(q, k, v, offsets, **options, seed=7 + 2**64))
    assert not torch.equal(one, jagged_attention(q, k, v, offsets, **options, seed=8))
    none = jagged_attention(q, k, v, offsets, heads=2)
    tiny = jagged_attention(q, k, v, offsets, heads=2, dropout=2.0**-18, seed=7)
    assert torch.equal(none, tiny)


@NAMES
def test_dropout_near_one_keeps_one_in_65536(name: str) -> None:
    made = call([20], 2, 8, dropout=0.9999999)
    with backend(name):
        assert jagged_attention(*made[:4], **made.options).isfinite().all()


# ---- offsets and arguments -----------------------------------------------------------------------


def test_offsets_are_checked_where_the_host_reads_them() -> None:
    made = call([3, 4], 2, 8)
    q, k, v = made.tensors
    for offsets, options, message in (
        ([1, 7], {}, "offsets must start at 0 and never fall"),
        ([0, 4, 3], {}, "offsets must start at 0 and never fall"),
        ([0, 8], {}, "offsets end at 8 but keys have 7"),
        ([0, 3, 7], {"max_length": 3}, "offsets hold a length of 4, above 3"),
    ):
        with pytest.raises(IndexError, match=message):
            jagged_attention(q, k, v, torch.tensor(offsets), **options)


IDS = """
import torch
from seqrec_kernels import jagged_attention
x = torch.randn(4, 8)
try:
    torch.compile(jagged_attention, fullgraph=True, backend="aot_eager")(
        x, x, x, torch.tensor([0, 5])
    )
except IndexError as error:
    print(error)
"""


def test_offsets_are_checked_inside_compiled_graphs_on_request() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDS], env={**os.environ, "SEQREC_CHECK_IDS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("offsets end at 5 but keys have 4")


def test_arguments_are_named_with_their_value() -> None:
    x, o = torch.randn(3, 4), torch.tensor([0, 3])
    wide = torch.randn(3, 12)
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, "queries must be a torch.Tensor, not list", ([1], x, x, o), {}),
        (TypeError, "queries are torch.float32 but keys are torch.float16", (x, x.half(), x, o),
         {}),
        (ValueError, "queries have width 4 but values have width 3", (x, x, x[:, :3], o), {}),
        (ValueError, "keys have 3 rows but values 2", (x, x, x[:2], o), {}),
        (ValueError, "keys are None beside values", (x, None, x, o), {}),
        (ValueError, "queries have width 4, not 3 equal parts", (x, None, None, o), {}),
        (ValueError, "keys have width 3, not 2 equal parts", (x, x[:, :3], None, o), {}),
        (ValueError, "queries have width 4 but keys have width 6", (x, wide, None, o), {}),
        (ValueError, "queries have width 4; it must be a multiple of heads, 3", (x, x, x, o),
         {"heads": 3}),
        (ValueError, "queries have width 0", (x[:, :0], x[:, :0], x[:, :0], o), {}),
        (ValueError, "heads is 0", (x, x, x, o), {"heads": 0}),
        (TypeError, "offsets must be int64, not torch.int32", (x, x, x, o.int()), {}),
        (ValueError, r"offsets must be \[B \+ 1\], not \(0,\)", (x, x, x, o[:0]), {}),
        (ValueError, "queries have 2 rows; they must have 3, one a key", (x[:2], x, x, o), {}),
        (ValueError, "queries have 3 rows; they must have 1, one a sequence", (x, x, x, o),
         {"last": True}),
        (TypeError, "causal must be a bool, not int", (x, x, x, o), {"causal": 1}),
        (TypeError, "last must be a bool, not NoneType", (x, x, x, o), {"last": None}),
        (ValueError, "dropout is 1.5", (x, x, x, o), {"dropout": 1.5}),
        (ValueError, "dropout is 1.0; it must be below 1", (x, x, x, o), {"dropout": 1.0}),
        (TypeError, "seed must be an int or a 0-d int64 tensor", (x, x, x, o), {"seed": 0.5}),
        (ValueError, "max_length is -1", (x, x, x, o), {"max_length": -1}),
    ]  # fmt: skip
    for kind, message, arguments, options in cases:
        with pytest.raises(kind, match=message):
            jagged_attention(*arguments, **options)


def test_the_packed_forms_are_the_same_call() -> None:
    for mask in MASKS.values():
        made = call([9, 4], 2, 8, dropout=0.2, **mask)
        apart, *others = (attend(form, *made[:4], **made.options) for form in FORMS)
        assert all(torch.equal(apart, other) for other in others)
