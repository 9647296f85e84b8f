"""What jagged attention promises to autograd, to the dispatcher and to memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import oracles
import pytest
import torch
from attention_calls import FORMS, MASKS, Call, attend, call, gradients
from oracles import Watch
from peak_memory import printed
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from seqrec_kernels import backend, jagged_attention
from seqrec_kernels.backend import report
from seqrec_kernels.ops.jagged_attention import blocked
from seqrec_kernels.ops.jagged_attention.problem import Problem

OPERATOR = torch.ops.seqrec_kernels.jagged_attention.default
MASK = pytest.mark.parametrize("mask", MASKS)
DROPS = pytest.mark.parametrize("dropout", [0.0, 0.3])
FORM = pytest.mark.parametrize("form", FORMS)
PATHS = pytest.mark.parametrize("name", ["blocked", "native"])


def on(name: str) -> backend:
    """The implementation, or a skip with the reason."""
    if (reason := report("cpu")["jagged_attention"][name]) is not None:
        pytest.skip(reason)
    return backend(name)


def problem(made: Call, form: str = "apart") -> Problem:
    """The call as implementations get it, with gradients wanted of everything there is."""
    q, k, v = made.tensors
    last, causal = made.options.get("last", False), made.options.get("causal", True)
    held: list[Tensor | None] = [q, k, v]
    if form == "packed" and not last:
        held = [torch.cat((q, k, v), 1), None, None]
    elif form != "apart":
        held = [q, torch.cat((k, v), 1), None]
    dropped = round(made.options.get("dropout", 0) * 65536)
    return Problem(
        *oracles.leaves(*held), made.offsets, torch.tensor(3), made.options["heads"],
        causal and not last, last, dropped, None,
    )  # fmt: skip


# ---- promises to autograd ------------------------------------------------------------------------


@DROPS
@MASK
def test_only_the_gradients_that_are_needed_and_the_same_ones(
    tiny_tiles: None, mask: str, dropout: float
) -> None:
    made = call([6, 0, 13], 2, 5, spare=1, dropout=dropout, **MASKS[mask])
    upstream = torch.randn(made.queries.shape)
    everything = gradients(made, upstream)[1:]
    for wanted in product([False, True], repeat=3):
        inputs = [t.clone().requires_grad_(w) for t, w in zip(made.tensors, wanted, strict=True)]
        out = jagged_attention(*inputs, made.offsets, **made.options)
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.backward(upstream)
        for t, want, whole in zip(inputs, wanted, everything, strict=True):
            if want:
                assert t.grad is not None and torch.equal(t.grad, whole)
            else:
                assert t.grad is None


@PATHS
@FORM
def test_a_second_backward_gives_the_same_gradients(form: str, name: str) -> None:
    made = call([6, 0, 13], 2, 8, dropout=0.3)
    with on(name):
        inputs = oracles.leaves(*made.tensors)
        out = attend(form, *inputs, made.offsets, **made.options)
        upstream = torch.randn_like(out)
        first = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
        kept = [g.clone() for g in first]
        for g in first:
            g.fill_(torch.nan)  # what a caller does to a gradient must not reach the next one
        second = torch.autograd.grad(out, inputs, upstream)
    assert all(torch.equal(x, y) for x, y in zip(kept, second, strict=True))


@PATHS
@MASK
def test_a_second_derivative_is_refused_with_the_way_out(mask: str, name: str) -> None:
    made = call([4, 7], 2, 5, **MASKS[mask])
    inputs = oracles.leaves(*made.tensors)

    def value() -> Tensor:
        return jagged_attention(*inputs, made.offsets, **made.options).square().sum()

    with on(name):
        (first,) = torch.autograd.grad(value(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
            first.square().sum().backward()
    with backend("reference"):
        (again,) = torch.autograd.grad(value(), inputs[0], create_graph=True)
    again.square().sum().backward()
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-5)
    assert all(t.grad.any() for t in inputs)


@MASK
def test_the_reference_has_right_second_derivatives(mask: str) -> None:
    made = call([2, 0, 3], 2, 2, spare=1, dropout=0.3, **MASKS[mask])
    leaves = oracles.leaves(*made.tensors, dtype=torch.float64)

    def value(*tensors: Tensor) -> Tensor:
        return jagged_attention(*tensors, made.offsets, **made.options)

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


@PATHS
@MASK
def test_strided_and_expanded_inputs_and_none_is_written(mask: str, name: str) -> None:
    lengths = [4, 0, 5]
    last = mask == "last"
    for what in ("rows apart", "columns apart", "transposed", "expanded rows", "expanded columns"):
        made = call(lengths, 2, 4, dropout=0.3, **MASKS[mask])
        ways: dict[str, Any] = {
            "rows apart": lambda t: torch.cat((t, t), 1)[:, :8],
            "columns apart": lambda t: t.repeat_interleave(2, 1)[:, ::2],
            "transposed": lambda t: t.t().contiguous().t(),
            "expanded rows": lambda t: t[:1].expand(t.shape),
            "expanded columns": lambda t: t[:, :1].expand(t.shape),
        }
        given = [ways[what](t) for t in made.tensors]
        offsets = torch.stack((made.offsets, made.offsets), 1)[:, 0]
        copies = [t.clone() for t in (*given, offsets)]
        upstream = torch.randn(1, 8).expand(len(lengths) if last else 9, 8)
        with on(name):
            inputs = [t.detach().requires_grad_() for t in given]
            out = jagged_attention(*inputs, offsets, **made.options)
            ours = [out, *torch.autograd.grad(out, inputs, upstream)]
            q, k, v = (t.contiguous() for t in given)
            dense = gradients(made._replace(queries=q, keys=k, values=v), upstream.contiguous())
        for x, y in zip(ours, dense, strict=True):
            assert torch.equal(x, y), what
        for x, y in zip((*given, offsets), copies, strict=True):
            assert torch.equal(x, y), what


@DROPS
@MASK
def test_repeating_a_call_repeats_its_bits(mask: str, dropout: float) -> None:
    made = call(torch.randint(0, 40, (50,)).tolist(), 2, 8, dropout=dropout, **MASKS[mask])
    upstream = torch.randn(made.queries.shape)
    one, two = gradients(made, upstream), gradients(made, upstream)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["blocked", "native", "reference"])
@FORM
def test_autocast_casts_like_mm_and_returns_that_dtype(form: str, name: str) -> None:
    made = call([9, 20], 2, 8)
    inputs = oracles.leaves(*made.tensors)
    narrow = [t.bfloat16() for t in made.tensors]
    with on(name):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attend(form, *inputs, made.offsets, **made.options)
        assert torch.equal(out, attend(form, *narrow, made.offsets, **made.options))
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out.float().sum(), inputs)
    assert all(g.dtype == torch.float32 and g.any() for g in found)


# ---- the dispatcher ------------------------------------------------------------------------------


@PATHS
@FORM
@MASK
def test_opcheck(mask: str, form: str, name: str) -> None:
    made = problem(call([5, 0, 4], 2, 6, spare=2, dropout=0.3, **MASKS[mask]), form)
    with on(name):
        needs = [t is not None for t in made[:3]]
        torch.library.opcheck(OPERATOR, (*made, needs, name))


@PATHS
@FORM
def test_compiled_gives_the_bits_of_eager(form: str, name: str) -> None:
    made = call([5, 0, 24], 2, 8, spare=3, dropout=0.3, seed=4)
    upstream = torch.randn(made.queries.shape)

    def of_form(*tensors: Tensor, **options: Any) -> Tensor:
        return attend(form, *tensors, **options)

    with on(name):
        compiled = torch.compile(of_form, fullgraph=True)
        eager = gradients(made, upstream, function=of_form)
        traced = gradients(made, upstream, function=compiled)
    assert all(torch.equal(x, y) for x, y in zip(eager, traced, strict=True))


def test_a_batch_of_a_capacity_compiles_once_for_all_lengths() -> None:
    graphs = []

    def count(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(jagged_attention, fullgraph=True, backend=count)
    for lengths in ([5, 0, 24], [1, 1, 1], [0, 0, 29]):
        made = call(lengths, 2, 8, spare=30 - sum(lengths), dropout=0.2)
        seed = torch.tensor(sum(lengths))
        found = compiled(*made[:4], **made.options, seed=seed, max_length=30)
        expected = jagged_attention(*made[:4], **made.options, seed=seed)
        torch.testing.assert_close(found, expected)
    assert len(graphs) == 1


def test_the_reference_compiles_too() -> None:
    made = call([6, 3], 2, 4)
    with backend("reference"):
        compiled = torch.compile(jagged_attention, fullgraph=True, backend="aot_eager")
        expected = jagged_attention(*made[:4], **made.options)
        torch.testing.assert_close(compiled(*made[:4], **made.options), expected)


def test_where_the_host_reads_no_offsets_a_sequence_above_max_length_is_nan() -> None:
    for mask in MASKS.values():
        some = call([3, 6, 2], 2, 4, **mask)
        compiled = torch.compile(jagged_attention, fullgraph=True, backend="aot_eager")
        found = compiled(*some[:4], **some.options, max_length=4)
        wrong = found.isnan().any(1)
        expected = jagged_attention(*some[:4], **some.options)
        assert torch.equal(found[~wrong], expected[~wrong])
        nan = [1] if mask.get("last") else [7, 8] if mask == {} else range(3, 9)
        assert wrong.nonzero().flatten().tolist() == list(nan)


@pytest.mark.parametrize("name", ["blocked", "one rectangle", "native", "reference"])
def test_offsets_that_nobody_has_read_may_point_anywhere(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No memory is touched that is not the tensors'."""
    if name == "one rectangle":
        groups = blocked._groups
        monkeypatch.setattr(blocked, "_groups", lambda *given, read: groups(*given, read=False))
    compiled = torch.compile(jagged_attention, fullgraph=True, backend="aot_eager")
    with on(name if name in ("native", "reference") else "blocked"):
        for wild in ([0, 2**40, -(2**40), 11], [-5, 3, 4, 11], [0, 3, 8, 12]):
            for mask in MASKS.values():
                made = call([3, 6, 2], 2, 4, **mask)._replace(offsets=torch.tensor(wild))
                upstream = torch.ones(made.queries.shape)
                found = gradients(
                    made,
                    upstream,
                    function=lambda *t, **o: compiled(
                        *t, **o, max_length=None if name == "native" else 9
                    ),
                )
                assert [t.shape for t in found[1:]] == [t.shape for t in made.tensors]
                assert name != "native" or all(t.isnan().all() for t in found)


@FORM
def test_a_dispatch_mode_sees_one_operator_and_a_plain_call_bypasses_it(form: str) -> None:
    made = call([5, 4], 2, 6)
    inputs = oracles.leaves(*made.tensors)
    with Watch() as watch:
        out = attend(form, *inputs, made.offsets, **made.options)
    assert "seqrec_kernels.jagged_attention.default" in watch.names
    plain = attend(form, *inputs, made.offsets, **made.options)
    assert torch.equal(out, plain)
    assert "Direct" in str(plain.grad_fn) and "Direct" not in str(out.grad_fn)
    one, two = (torch.autograd.grad(x.sum(), inputs) for x in (out, plain))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@DROPS
@MASK
def test_no_tensor_is_larger_than_the_workspace_or_an_input(
    monkeypatch: pytest.MonkeyPatch, mask: str, dropout: float
) -> None:
    monkeypatch.setattr(blocked, "TILES", blocked.Tiles(floats=2**15))
    made = problem(call([200] * 5 + [3] * 300, 2, 8, dropout=dropout, **MASKS[mask]))
    # the operator's body, which a mode outside the call would see as one step
    with Watch() as watch, torch.no_grad():
        out, saved = blocked.forward(made, [True] * 3)
        blocked.backward(torch.ones_like(out), made, [out, *saved], [True] * 3)
    inputs = 4 * (made.tokens + 1) * made.width
    # one query of a sequence is the least there can be of a block
    assert watch.largest <= max(4 * 2**15, inputs)
    assert watch.largest < 4 * 2 * (5 * 200**2 + 300 * 3**2) / 8


MEMORY = """
from seqrec_kernels import jagged_attention

torch.set_num_threads(1)

def run(b, length, p):
    x = torch.randn(b * length, 96, requires_grad=True)
    x.grad = torch.zeros_like(x)
    offsets = torch.arange(b + 1) * length
    before = peak()
    jagged_attention(x, None, None, offsets, heads=8, dropout=p).sum().backward()
    return peak() - before

run(2, 5, float(sys.argv[1]))
print(run(24, 1000, float(sys.argv[1])))
"""


@PATHS
@DROPS
def test_peak_resident_memory_stays_below_ten_percent_of_the_scores(
    dropout: float, name: str
) -> None:
    """One matrix ``[B, heads, L, L]`` has 768 MB at this size; torch's backward has three."""
    on(name)
    used = printed(MEMORY, str(dropout), backend=name)
    scores = 24 * 8 * 1000**2 * 4
    assert 0 < used < 0.1 * scores, f"{used / 1e6:.0f} MB"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    made = call([5, 7], 2, 6, dropout=0.3)
    upstream = torch.randn(made.queries.shape)
    expected = gradients(made, upstream)[1:]
    inputs = oracles.leaves(*made.tensors)
    out = checkpoint(
        lambda *t: jagged_attention(*t, made.offsets, **made.options), *inputs,
        use_reentrant=reentrant,
    )  # fmt: skip
    out.backward(upstream)
    for ours, theirs in zip(inputs, expected, strict=True):
        assert torch.equal(ours.grad, theirs)


def test_forward_mode_and_function_transforms_are_refused_with_the_way_out() -> None:
    made = call([5, 4], 2, 6)
    q = made.queries

    def total(q: Tensor) -> Tensor:
        return jagged_attention(q, *made[1:4], **made.options).sum()

    calls = [
        lambda: torch.func.jvp(total, (q,), (torch.ones_like(q),))[1],
        lambda: torch.func.grad(total)(q),
    ]
    for one in calls:
        with pytest.raises(RuntimeError, match=r'torch\.func .*backend\("reference"\)'):
            one()
    with backend("reference"):
        tangent, gradient = (one() for one in calls)
    torch.testing.assert_close(tangent, gradient.sum(), rtol=1e-4, atol=1e-5)


def test_tracing_and_meta_tensors_read_no_offsets() -> None:
    made = call([5, 4], 2, 6)
    q, k, v = made.tensors
    graph = make_fx(lambda o: jagged_attention(q, k, v, o, heads=2))(made.offsets)
    other = torch.tensor([0, 2, 9])
    assert torch.equal(graph(other), jagged_attention(q, k, v, other, heads=2))
    inputs = oracles.leaves(*(t.to("meta") for t in made.tensors))
    out = jagged_attention(*inputs, made.offsets.to("meta"), heads=2)
    assert out.shape == (9, 12) and torch.autograd.grad(out.sum(), inputs[1])[0].shape == (9, 12)
