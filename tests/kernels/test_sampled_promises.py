"""What the sampled losses promise to autograd, to the dispatcher and to memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import oracles
import pytest
import torch
from oracles import Watch
from peak_memory import printed
from sampled_calls import LOSSES, REDUCTIONS, Call, call, gradients, upstream_of
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from seqrec_kernels import backend, bce_loss, sampled_softmax_loss
from seqrec_kernels.backend import report
from seqrec_kernels.ops.sampled import blocked
from seqrec_kernels.ops.sampled.problem import Problem

OPERATOR = torch.ops.seqrec_kernels.sampled.default
EVERY = pytest.mark.parametrize("loss", LOSSES)
LEADING = pytest.mark.parametrize("loss", ["gbce", "bpr", "corrected"])
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


def problem(loss: str, made: Call, reduction: str) -> Problem:
    """The call as implementations get it, with gradients wanted of everything there is."""
    kind = LOSSES[loss]
    q, e, log_q = oracles.leaves(made.queries, made.items, made.log_q)
    return Problem(
        q, e, made.positives, made.negatives, log_q if kind.corrected else None, kind.name, 0.7,
        kind.options.get("beta", 1.0), True, reduction,
    )  # fmt: skip


# ---- promises to autograd ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
def test_only_the_gradients_that_are_needed_and_the_same_ones(
    tiny_tiles: None, shared: bool, reduction: str
) -> None:
    made = call(7, 5, 9, 6, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    everything = gradients(LOSSES["corrected"], made, upstream)[1:]
    for wanted in product([False, True], repeat=3):
        given = zip((made.queries, made.items, made.log_q), wanted, strict=True)
        inputs = [t.clone().requires_grad_(want) for t, want in given]
        q, e, log_q = inputs
        value = sampled_softmax_loss(q, e, *made[2:4], log_q=log_q, **made.options)
        assert value.requires_grad == any(wanted)
        if any(wanted):
            value.backward(upstream)
        for t, want, whole in zip(inputs, wanted, everything, strict=True):
            if want:
                assert t.grad is not None and torch.equal(t.grad, whole)
            else:
                assert t.grad is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@EVERY
def test_a_second_backward_gives_the_same_gradients(
    tiny_tiles: None, loss: str, shared: bool, reduction: str
) -> None:
    made = call(7, 5, 9, 6, shared=shared, reduction=reduction)
    q, e = oracles.leaves(made.queries, made.items)
    value = LOSSES[loss].function(q, e, *made[2:4], **made.options)
    upstream = torch.randn_like(value)
    first = torch.autograd.grad(value, (q, e), upstream, retain_graph=True)
    spoiled = torch.autograd.grad(value, (q, e), upstream, retain_graph=True)
    for g in spoiled:
        g.fill_(torch.nan)  # what a caller does to a gradient must not reach the next one
    second = torch.autograd.grad(value, (q, e), upstream)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@EVERY
def test_a_second_derivative_is_refused_with_the_way_out(loss: str, reduction: str) -> None:
    made = call(4, 3, 6, 5, reduction=reduction)
    q, e = oracles.leaves(made.queries, made.items)

    def value() -> Tensor:
        return LOSSES[loss].function(q, e, *made[2:4], **made.options).sum()

    (first,) = torch.autograd.grad(value(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
        first.square().sum().backward()
    with backend("reference"):
        (again,) = torch.autograd.grad(value(), q, create_graph=True)
    again.square().sum().backward()
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-6)
    assert q.grad is not None and q.grad.any() and e.grad.any()


@SHARED
@EVERY
def test_the_reference_has_right_second_derivatives(loss: str, shared: bool) -> None:
    made, kind = call(3, 2, 4, 2, shared=shared), LOSSES[loss]
    leaves = oracles.leaves(made.queries, made.items, made.log_q, dtype=torch.float64)

    def value(q: Tensor, e: Tensor, log_q: Tensor) -> Tensor:
        options = {**made.options, **kind.options, **({"log_q": log_q} if kind.corrected else {})}
        return kind.function(q, e, *made[2:4], **options)

    if not kind.corrected:
        leaves[2].requires_grad_(False)
    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@LEADING
def test_strided_and_expanded_inputs_and_none_is_written(
    tiny_tiles: None, loss: str, reduction: str
) -> None:
    rows, d, kind = 6, 5, LOSSES[loss]
    matrices = {
        "column slices": torch.randn(rows, 2 * d)[:, ::2],
        "transposed": torch.randn(d, rows).T,
        "expanded rows": torch.randn(1, d).expand(rows, d),
        "expanded columns": torch.randn(rows, 1).expand(rows, d),
        "a row slice": torch.randn(rows + 3, d)[3:],
    }
    ids = torch.randint(-1, rows, (rows, 9))
    negatives = {
        "transposed": ids[:, :rows].T,
        "column slices": ids[:, 1::2],
        "expanded rows": ids[:1].expand(rows, 9),
        "expanded columns": ids[:, :1].expand(rows, 4),
        "shared": ids[:, 2],
    }
    for (what, t), (how, n) in product(matrices.items(), negatives.items()):
        log_q = torch.randn(2 * rows)[::2]
        p = ids[:, 5]
        copies = [x.clone() for x in (t, ids, log_q)]
        made = Call(t, t, p, n, log_q, {"reduction": reduction})
        upstream = upstream_of(made)
        q, e = t.detach().requires_grad_(), t.detach().requires_grad_()
        options: dict[str, Any] = {**made.options, **kind.options}
        if kind.corrected:
            options["log_q"] = log_q.detach().requires_grad_()
        value = kind.function(q, e, p, n, **options)
        wanted = [q, e, *([options["log_q"]] if kind.corrected else [])]
        ours = [value, *torch.autograd.grad(value, wanted, upstream)]
        dense = made._replace(
            queries=t.contiguous(), items=t.contiguous(), positives=p.contiguous(),
            negatives=n.contiguous(), log_q=log_q.contiguous(),
        )  # fmt: skip
        for x, y in zip(ours, gradients(kind, dense, upstream), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=f"{what}, {how}")
        for x, y in zip((t, ids, log_q), copies, strict=True):
            assert torch.equal(x, y), (what, how)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@LEADING
def test_repeating_a_call_repeats_its_bits(loss: str, shared: bool, reduction: str) -> None:
    made = call(150, 33, 40, 24, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    one = gradients(LOSSES[loss], made, upstream)
    two = gradients(LOSSES[loss], made, upstream)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_autocast_casts_like_mm_and_returns_float32() -> None:
    made = call(40, 9, 30, 16)
    q, e = oracles.leaves(made.queries, made.items)
    rest = made[2:4]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sampled_softmax_loss(q, e, *rest, log_q=made.log_q)
        mixed = sampled_softmax_loss(q.bfloat16(), e, *rest, log_q=made.log_q)
    narrow = q.bfloat16(), e.bfloat16()
    assert value.dtype == torch.float32 and torch.equal(value, mixed)
    assert torch.equal(value, sampled_softmax_loss(*narrow, *rest, log_q=made.log_q))
    assert not torch.equal(value, sampled_softmax_loss(q, e, *rest, log_q=made.log_q))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(value, (q, e)))
    with backend("reference"):
        expected = sampled_softmax_loss(*narrow, *rest)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(sampled_softmax_loss(q, e, *rest), expected)


# ---- the dispatcher ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@SHARED
@LEADING
def test_opcheck(loss: str, shared: bool, reduction: str) -> None:
    made = problem(loss, call(5, 4, 7, 6, shared=shared), reduction)
    needs = [True, True, made.log_q is not None]
    torch.library.opcheck(OPERATOR, (*made, needs, "blocked"))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@LEADING
def test_compiled_gives_the_bits_of_eager(loss: str, reduction: str) -> None:
    made, kind = call(20, 6, 25, 8, reduction=reduction, drop_hits=True), LOSSES[loss]
    upstream = upstream_of(made)
    compiled = torch.compile(kind.function, fullgraph=True)
    eager = gradients(kind, made, upstream)
    traced = gradients(kind, made, upstream, function=compiled)
    assert all(torch.equal(x, y) for x, y in zip(eager, traced, strict=True))


@pytest.mark.parametrize("name", ["blocked", "reference"])
@SHARED
@EVERY
def test_where_the_host_reads_no_ids_a_wrong_one_makes_its_row_nan(
    tiny_tiles: None, loss: str, shared: bool, name: str
) -> None:
    """And nothing else: a slot out of range adds nothing to the gradients."""
    made, kind = call(6, 4, 9, 5, shared=shared, reduction="none"), LOSSES[loss]
    positives, negatives = torch.arange(6), made.negatives.clone()
    empty = negatives.clone()
    if shared:
        negatives[1], empty[1] = 9, -1
        wrong = list(range(6))
    else:
        negatives[0, 1], empty[0, 1] = 9, -1
        negatives[3, 2], empty[3, 2] = -(2**40), -1
        negatives[5], empty[5] = 2**40, -1
        wrong = [0, 2, 3, 5]
    right = positives.clone()
    positives[2], right[2] = (-2, -1) if not shared else (2, 2)
    compiled = torch.compile(kind.function, fullgraph=True, backend="aot_eager")
    with backend(name):
        bad = made._replace(positives=positives, negatives=negatives)
        losses, *found = gradients(kind, bad, torch.ones(6), function=compiled)
        good = made._replace(positives=right, negatives=empty)
        expected, *others = gradients(kind, good, torch.ones(6))
    assert losses.isnan().tolist() == [row in wrong for row in range(6)]
    fine = [row for row in range(6) if row not in wrong]
    torch.testing.assert_close(losses[fine], expected[fine])
    for ours, theirs in zip(found, others, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_reference_compiles_too() -> None:
    made = call(6, 3, 7, 4)
    with backend("reference"):
        compiled = torch.compile(sampled_softmax_loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*made[:4]), sampled_softmax_loss(*made[:4]))


def test_a_dispatch_mode_sees_one_operator_and_a_plain_call_bypasses_it() -> None:
    made = call(5, 4, 7, 6)
    q, e = oracles.leaves(made.queries, made.items)
    with Watch() as watch:
        loss = bce_loss(q, e, *made[2:4])
    assert "seqrec_kernels.sampled.default" in watch.names
    plain = bce_loss(q, e, *made[2:4])
    assert torch.equal(loss, plain)
    assert "Direct" in str(plain.grad_fn) and "Direct" not in str(loss.grad_fn)
    one, two = torch.autograd.grad(loss, (q, e)), torch.autograd.grad(plain, (q, e))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@SHARED
@LEADING
def test_no_tensor_is_larger_than_the_workspace_or_an_input(
    monkeypatch: pytest.MonkeyPatch, loss: str, shared: bool, reduction: str
) -> None:
    monkeypatch.setattr(blocked, "TILES", blocked.Tiles(floats=2**14))
    rows, count, items, d = 900, 500 if shared else 60, 50, 32
    made = problem(loss, call(rows, count, items, d, shared=shared), reduction)
    needs = [True, True, made.log_q is not None]
    # the operator's body, which a mode outside the call would see as one step
    with Watch() as watch, torch.no_grad():
        value, saved = blocked.forward(made, needs)
        blocked.backward(torch.ones_like(value), made, saved, needs)
    # views of inputs have their size
    inputs = max(4 * rows * d, 8 * made.negatives.numel(), 4 * count * d)
    assert watch.largest <= max(4 * 2**14, inputs)
    assert watch.largest < 4 * rows * count * (1 if shared else d) / 10


MEMORY = """
from seqrec_kernels import sampled_softmax_loss

torch.set_num_threads(1)

def run(m, n, v, d, reduction):
    q, e = torch.randn(m, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    p, ids = torch.randint(v, (m,)), torch.randint(v, (m, n))
    q.grad, e.grad = torch.zeros_like(q), torch.zeros_like(e)
    before = peak()
    sampled_softmax_loss(q, e, p, ids, drop_hits=True, reduction=reduction).sum().backward()
    return peak() - before

run(8, 4, 30, 64, sys.argv[1])
print(run(12800, 128, 12101, 64, sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["blocked", "native"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_peak_resident_memory_stays_below_five_percent_of_the_gathered_rows(
    reduction: str, name: str
) -> None:
    """Gathering takes ``[M, N, D]`` twice, once for its gradient: 839 MB at this size."""
    if (reason := report("cpu")["sampled"][name]) is not None:
        pytest.skip(reason)
    used = printed(MEMORY, reduction, backend=name)
    gathered = 2 * 12800 * 128 * 64 * 4
    assert 0 < used < 0.05 * gathered, f"{used / 1e6:.0f} MB"


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reduction: str, reentrant: bool) -> None:
    made = call(5, 4, 7, 6, reduction=reduction)
    expected = oracles.leaves(made.queries, made.items)
    sampled_softmax_loss(*expected, *made[2:4], **made.options).sum().backward()
    found = oracles.leaves(made.queries, made.items)
    value = checkpoint(
        lambda q, e: sampled_softmax_loss(q, e, *made[2:4], **made.options), *found,
        use_reentrant=reentrant,
    )  # fmt: skip
    value.sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_forward_mode_and_function_transforms_are_refused_with_the_way_out() -> None:
    made = call(5, 4, 7, 6)
    q = made.queries

    def loss(q: Tensor) -> Tensor:
        return bce_loss(q, *made[1:4])

    calls = [
        lambda: torch.func.jvp(loss, (q,), (torch.ones_like(q),))[1],
        lambda: torch.func.grad(loss)(q),
        lambda: torch.func.vmap(loss)(q.expand(2, 5, 6)),
    ]
    for one in calls:
        with pytest.raises(RuntimeError, match=r'torch\.func .*backend\("reference"\)'):
            one()
    with backend("reference"):
        tangent, gradient, batch = (one() for one in calls)
    torch.testing.assert_close(tangent, gradient.sum())
    torch.testing.assert_close(batch, loss(q).expand(2))


def test_tracing_and_meta_tensors_read_no_ids() -> None:
    made = call(5, 4, 7, 6)
    graph = make_fx(lambda n: bce_loss(*made[:3], n))(made.negatives)
    other = made.negatives.flip(0)
    assert torch.equal(graph(other), bce_loss(*made[:3], other))
    q, e = oracles.leaves(made.queries.to("meta"), made.items.to("meta"))
    rest = made.positives.to("meta"), made.negatives.to("meta")
    loss = sampled_softmax_loss(q, e, *rest, reduction="none")
    assert loss.shape == (5,) and torch.autograd.grad(loss.sum(), e)[0].shape == (7, 6)
