"""What the contrastive losses promise to autograd, to the dispatcher and to memory."""

from __future__ import annotations

from itertools import product

import oracles
import pytest
import torch
from contrast_calls import LOSSES, NAMES, REDUCTIONS, gradients, problem, upstream_of
from oracles import Watch
from peak_memory import printed
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from seqrec_kernels import backend, hard_negative_info_nce, info_nce
from seqrec_kernels.ops.contrast import blocked
from seqrec_kernels.ops.contrast.problem import Problem

OPERATOR = torch.ops.seqrec_kernels.contrast.default
LEADING = ("official", "official, drawn", "paper")


# ---- promises to autograd ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LEADING)
def test_only_the_gradients_that_are_needed_and_the_same_ones(
    tiny_tiles: None, loss: str, reduction: str
) -> None:
    tensors, options = problem(7, 9, 4, 5)
    options |= {**LOSSES[loss], "reduction": reduction}
    upstream = upstream_of(tensors, options)
    everything = gradients(hard_negative_info_nce, tensors, options, upstream)[1:]
    for wanted in product([False, True], repeat=4):
        inputs = [
            t.clone().requires_grad_(want)
            for t, want in zip(tensors, wanted, strict=True)
            if t is not None
        ]
        value = hard_negative_info_nce(*inputs[:3], noise=inputs[3], **options)
        assert value.requires_grad == any(wanted)
        if any(wanted):
            value.backward(upstream)
        for t, want, whole in zip(inputs, wanted, everything, strict=True):
            assert torch.equal(t.grad, whole) if want else t.grad is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LEADING)
def test_a_second_backward_gives_the_same_gradients(
    tiny_tiles: None, loss: str, reduction: str
) -> None:
    """The ratios of a drawn mix among them: they are drawn again, the same."""
    tensors, options = problem(7, 9, 4, 5)
    options |= {**LOSSES[loss], "reduction": reduction}
    a, p, n, e = oracles.leaves(*tensors)
    value = hard_negative_info_nce(a, p, n, noise=e, **options)
    upstream = torch.randn_like(value)
    first = torch.autograd.grad(value, (a, p, n, e), upstream, retain_graph=True)
    spoiled = torch.autograd.grad(value, (a, p, n, e), upstream, retain_graph=True)
    for g in spoiled:
        g.fill_(torch.nan)  # what a caller does to a gradient must not reach the next one
    second = torch.autograd.grad(value, (a, p, n, e), upstream)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused_with_the_way_out(reduction: str) -> None:
    tensors, options = problem(4, 5, 2, 3)
    options |= {**LOSSES["official"], "reduction": reduction}
    a, p, n, e = oracles.leaves(*tensors)
    value = hard_negative_info_nce(a, p, n, noise=e, **options).sum()
    (first,) = torch.autograd.grad(value, a, create_graph=True)
    with pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
        first.square().sum().backward()
    with backend("reference"):
        value = hard_negative_info_nce(a, p, n, noise=e, **options).sum()
    (again,) = torch.autograd.grad(value, a, create_graph=True)
    again.square().sum().backward()
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-6)
    assert a.grad is not None and a.grad.any() and n.grad.any()


@pytest.mark.parametrize("loss", ["info_nce", "focal"])
def test_the_reference_has_right_second_derivatives(loss: str) -> None:
    tensors, options = problem(3, 4, 2, 2)
    leaves = oracles.leaves(*tensors, dtype=torch.float64)

    def value(a: Tensor, p: Tensor, n: Tensor, e: Tensor) -> Tensor:
        return hard_negative_info_nce(a, p, n, noise=e, **options, **LOSSES[loss])

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


@pytest.mark.parametrize("loss", ["official", "paper"])
def test_the_references_second_derivatives_are_those_of_explicit_vectors(loss: str) -> None:
    """With a stop-gradient there is no function to difference: the oracle's graph decides."""
    tensors, options = problem(3, 4, 2, 3)
    options |= LOSSES[loss]
    found = []
    for function in (hard_negative_info_nce, oracles.contrast):
        leaves = oracles.leaves(*tensors, dtype=torch.float64)
        value = function(*leaves[:3], noise=leaves[3], **options)
        first = torch.autograd.grad(value, leaves, create_graph=True)
        sum(g.sin().sum() for g in first).backward()  # type: ignore[union-attr]
        found.append([t.grad for t in leaves])
    for name, ours, theirs in zip(NAMES, *found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LEADING)
def test_strided_and_expanded_inputs_and_none_is_written(
    tiny_tiles: None, loss: str, reduction: str
) -> None:
    rows, d = 6, 5
    calls = {
        "column slices": torch.randn(rows, 2 * d)[:, ::2],
        "transposed": torch.randn(d, rows).T,
        "expanded rows": torch.randn(1, d).expand(rows, d),
        "expanded columns": torch.randn(rows, 1).expand(rows, d),
        "a row slice": torch.randn(rows + 3, d)[3:],
    }
    ids = torch.randint(3, (rows, 2))
    for what, t in calls.items():
        tensors = [t, t.flip(0), t + 1, t - 1]
        tensors = [x.as_strided(t.shape, t.stride()) if x is t else x for x in tensors]
        options = {
            **LOSSES[loss], "reduction": reduction,
            "anchor_ids": ids[:, 0], "negative_ids": ids[:1, 1].expand(rows),
        }  # fmt: skip
        copies = [x.clone() for x in (*tensors, ids)]
        upstream = upstream_of(tensors, options)
        leaves = [x.detach().requires_grad_() for x in (t, tensors[1], t, t)]
        value = hard_negative_info_nce(*leaves[:3], noise=leaves[3], **options)
        ours = [value, *torch.autograd.grad(value, leaves, upstream)]
        dense = [x.detach().clone(memory_format=torch.contiguous_format) for x in leaves]
        plain = gradients(hard_negative_info_nce, dense, options, upstream)
        for x, y in zip(ours, plain, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=what)
        assert all(torch.equal(x, y) for x, y in zip((*tensors, ids), copies, strict=True)), what


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LEADING)
def test_repeating_a_call_repeats_its_bits(loss: str, reduction: str) -> None:
    tensors, options = problem(150, 170, 33, 24)
    options |= {**LOSSES[loss], "reduction": reduction}
    upstream = upstream_of(tensors, options)
    one = gradients(hard_negative_info_nce, tensors, options, upstream)
    two = gradients(hard_negative_info_nce, tensors, options, upstream)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_autocast_casts_like_mm_and_returns_float32() -> None:
    tensors, options = problem(40, 30, 9, 16)
    options |= LOSSES["official"]
    a, p, n, e = oracles.leaves(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hard_negative_info_nce(a, p, n, noise=e, **options)
        mixed = hard_negative_info_nce(a.bfloat16(), p, n.bfloat16(), noise=e, **options)
    narrow = [t.bfloat16() for t in tensors if t is not None]
    assert value.dtype == torch.float32 and torch.equal(value, mixed)
    assert torch.equal(value, hard_negative_info_nce(*narrow[:3], noise=narrow[3], **options))
    assert not torch.equal(value, hard_negative_info_nce(a, p, n, noise=e, **options))
    found = torch.autograd.grad(value, (a, p, n, e))
    assert all(g.dtype == torch.float32 for g in found)
    with backend("reference"):
        expected = hard_negative_info_nce(*narrow[:3], noise=narrow[3], **options)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(hard_negative_info_nce(a, p, n, noise=e, **options), expected)


# ---- the dispatcher ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", ["info_nce", "official, drawn"])
def test_opcheck(loss: str, reduction: str) -> None:
    tensors, options = problem(5, 6, 3, 4)
    a, p, n, e = oracles.leaves(*tensors)
    drawn = loss != "info_nce"
    call = Problem(
        a, p, n, e if drawn else None, options["anchor_ids"], options["negative_ids"],
        torch.tensor(3), 0.7, 2.0 if drawn else None, 0.2 if drawn else 0.0,
        0.1, 0.9, 0.5 if drawn else 0.0, "official", reduction,
    )  # fmt: skip
    torch.library.opcheck(OPERATOR, (*call, [True, True, True, drawn], "blocked"))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", ["info_nce", "official, drawn"])
def test_compiled_gives_the_bits_of_eager(loss: str, reduction: str) -> None:
    tensors, options = problem(20, 25, 6, 8)
    options |= {**LOSSES[loss], "reduction": reduction}
    upstream = upstream_of(tensors, options)
    compiled = torch.compile(hard_negative_info_nce, fullgraph=True)
    eager = gradients(hard_negative_info_nce, tensors, options, upstream)
    traced = gradients(compiled, tensors, options, upstream)
    assert all(torch.equal(x, y) for x, y in zip(eager, traced, strict=True))
    if "seed" in options:
        options["seed"] = torch.tensor(options["seed"])  # a tensor may change between calls
        for _ in range(2):
            eager = gradients(hard_negative_info_nce, tensors, options, upstream)
            traced = gradients(compiled, tensors, options, upstream)
            assert all(torch.equal(x, y) for x, y in zip(eager, traced, strict=True))
            options["seed"] = options["seed"] + 1


def test_the_reference_compiles_too() -> None:
    tensors, options = problem(6, 7, 2, 4)
    a, p, n, e = tensors
    options |= {**LOSSES["official, drawn"], "noise": e}
    with backend("reference"):
        compiled = torch.compile(hard_negative_info_nce, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(a, p, n, **options), hard_negative_info_nce(a, p, n, **options)
        )


def test_a_dispatch_mode_sees_one_operator_and_a_plain_call_bypasses_it() -> None:
    tensors, options = problem(5, 6, 2, 4)
    a, p, n, _ = oracles.leaves(*tensors)
    with Watch() as watch:
        loss = info_nce(a, p, n, **options)
    assert "seqrec_kernels.contrast.default" in watch.names
    plain = info_nce(a, p, n, **options)
    assert torch.equal(loss, plain)
    assert "Direct" in str(plain.grad_fn) and "Direct" not in str(loss.grad_fn)
    for x, y in zip(
        torch.autograd.grad(loss, (a, p, n)), torch.autograd.grad(plain, (a, p, n)), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LEADING)
def test_no_tensor_is_larger_than_the_workspace_or_an_input(
    monkeypatch: pytest.MonkeyPatch, loss: str, reduction: str
) -> None:
    monkeypatch.setattr(blocked, "TILES", blocked.Tiles(floats=2**14, least_rows=2))
    rows, count, noise, d = 600, 500, 100, 3
    tensors, options = problem(rows, count, noise, d)
    options |= {**LOSSES[loss], "reduction": reduction}
    low, high = mix if isinstance(mix := options["mix"], tuple) else (mix, mix)
    a, p, n, e = tensors
    assert a is not None and p is not None and n is not None
    call = Problem(
        a, p, n, e, options["anchor_ids"], options["negative_ids"], torch.tensor(3), 0.7,
        options["focal_scale"], options.get("margin", 0.0), low, high, options["mix_weight"],
        options.get("form", "official"), reduction,
    )  # fmt: skip
    needs = [True, True, True, True]
    # the operator's body, which a mode outside the call would see as one step
    with Watch() as watch, torch.no_grad():
        value, saved = blocked.forward(call, needs)
        blocked.backward(torch.ones_like(value), call, saved, needs)
    # bytes of the workspace, of a row's worth more for its rounding; counters are int64
    assert watch.largest <= 4 * 2**14 * 1.2
    assert watch.largest < 4 * rows * count / 10


MEMORY = """
from seqrec_kernels import hard_negative_info_nce

b, d, reduction = 4096, 64, sys.argv[1]

def run(b, d):
    z = torch.randn(2 * b, d, requires_grad=True)
    p, e, ids = torch.randn(2 * b, d), torch.randn(b, d), torch.randint(b, (2 * b,))
    z.grad = torch.zeros_like(z)
    before = peak()
    hard_negative_info_nce(
        z, p, z, noise=e, anchor_ids=ids, negative_ids=ids, focal_scale=8.0, margin=0.2,
        mix=0.4, mix_weight=0.1, reduction=reduction,
    ).sum().backward()
    return peak() - before

run(8, 16)
print(run(b, d))
"""


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_peak_resident_memory_of_a_large_batch_stays_below_100_megabytes(reduction: str) -> None:
    """8192 rows of width 64: one ``[R, K]`` matrix is 268 MB, the published form 17 GB a tensor."""
    used = printed(MEMORY, reduction, backend="blocked")
    assert 0 < used < 100e6, f"{used / 1e6:.0f} MB"


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reduction: str, reentrant: bool) -> None:
    tensors, options = problem(5, 6, None, 4)
    options |= {**LOSSES["official, drawn"], "reduction": reduction}
    expected = oracles.leaves(*tensors[:3])
    hard_negative_info_nce(*expected, **options).sum().backward()
    found = oracles.leaves(*tensors[:3])
    value = checkpoint(
        lambda a, p, n: hard_negative_info_nce(a, p, n, **options), *found, use_reentrant=reentrant
    )
    value.sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_forward_mode_and_function_transforms_are_refused_with_the_way_out() -> None:
    a, p, n = torch.randn(3, 5, 4)

    def loss(a: Tensor) -> Tensor:
        return info_nce(a, p, n)

    calls = [
        lambda: torch.func.jvp(loss, (a,), (torch.ones_like(a),))[1],
        lambda: torch.func.grad(loss)(a),
        lambda: torch.func.vmap(loss)(a.expand(2, 5, 4)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r'torch\.func .*backend\("reference"\)'):
            call()
    with backend("reference"):
        tangent, gradient, batch = (call() for call in calls)
    torch.testing.assert_close(tangent, gradient.sum())
    torch.testing.assert_close(batch, loss(a).expand(2))


def test_tracing_and_meta_tensors() -> None:
    tensors, options = problem(5, 6, None, 4)
    a, p, n, _ = tensors
    assert a is not None and p is not None and n is not None
    graph = make_fx(lambda a: info_nce(a, p, n, **options))(a)
    other = a.flip(0)
    assert torch.equal(graph(other), info_nce(other, p, n, **options))
    a, p, n = oracles.leaves(a.to("meta"), p.to("meta"), n.to("meta"))
    loss = info_nce(a, p, n, reduction="none")
    assert loss.shape == (5,) and torch.autograd.grad(loss.sum(), n)[0].shape == (6, 4)
