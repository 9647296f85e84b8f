"""What catalog_cross_entropy promises to autograd, to the dispatcher and to memory."""

from __future__ import annotations

import oracles
import pytest
import torch
from cross_entropy_calls import gradients, problem
from oracles import Watch
from peak_memory import printed
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from seqrec_kernels import backend, catalog_cross_entropy, native
from seqrec_kernels.ops.catalog_cross_entropy import blocked

OPERATOR = torch.ops.seqrec_kernels.catalog_cross_entropy.default
REDUCTIONS = ("mean", "sum", "none")


# ---- promises to autograd ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wanted", ["q", "e", "b", "qe", "qb", "eb"])
def test_only_the_gradients_that_are_needed_and_the_same_ones(
    tiny_tiles: None, wanted: str, reduction: str
) -> None:
    q, e, y, options = problem(7, 23, 5, 2, bias=True)
    upstream = torch.randn(7) if reduction == "none" else torch.randn(())
    options["reduction"] = reduction
    everything = gradients(catalog_cross_entropy, q, e, y, options, upstream)[1:]
    inputs = {"q": q, "e": e, "b": options.pop("item_bias")}
    for name in wanted:
        inputs[name] = inputs[name].clone().requires_grad_()
    loss = catalog_cross_entropy(inputs["q"], inputs["e"], y, item_bias=inputs["b"], **options)
    loss.backward(upstream)
    for name, whole in zip("qeb", everything, strict=True):
        if name in wanted:
            assert torch.equal(inputs[name].grad, whole)
        else:
            assert inputs[name].grad is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_backward_gives_the_same_gradients(tiny_tiles: None, reduction: str) -> None:
    q, e, y, options = problem(7, 23, 5, 2)
    q, e = oracles.leaves(q, e)
    loss = catalog_cross_entropy(q, e, y, reduction=reduction, **options)
    upstream = torch.randn_like(loss)
    first = torch.autograd.grad(loss, (q, e), upstream, retain_graph=True)
    for g in first:
        g_kept = g.clone()
        g.zero_()  # what a caller does to a gradient must not reach the next one
        g.add_(g_kept)
    spoiled = torch.autograd.grad(loss, (q, e), upstream, retain_graph=True)
    spoiled[0].fill_(torch.nan)
    second = torch.autograd.grad(loss, (q, e), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused_with_the_way_out(reduction: str) -> None:
    q, e, y, _ = problem(4, 9, 3)
    q, e = oracles.leaves(q, e)
    loss = catalog_cross_entropy(q, e, y, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
        first.square().sum().backward()
    with backend("reference"):
        loss = catalog_cross_entropy(q, e, y, reduction=reduction).sum()
        (again,) = torch.autograd.grad(loss, q, create_graph=True)
        again.square().sum().backward()
    torch.testing.assert_close(first, again)
    assert q.grad.any() and e.grad.any()


def test_the_reference_has_right_second_derivatives() -> None:
    q, e = oracles.leaves(torch.randn(3, 2), torch.randn(5, 2), dtype=torch.float64)
    (b,) = oracles.leaves(torch.randn(5), dtype=torch.float64)
    y, w = torch.tensor([[1, 2], [4, -1], [3, 3]]), torch.rand(3, 2, dtype=torch.float64)

    def loss(q: Tensor, e: Tensor, b: Tensor) -> Tensor:
        return catalog_cross_entropy(q, e, y, w, item_bias=b, first_item=1, temperature=0.5)

    assert torch.autograd.gradcheck(loss, (q, e, b))
    assert torch.autograd.gradgradcheck(loss, (q, e, b))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_strided_and_expanded_inputs_and_none_is_written(tiny_tiles: None, reduction: str) -> None:
    m, v, d = 6, 21, 5
    wide = torch.randn(v, 2 * d)
    calls = {
        "column slices": (torch.randn(m, 2 * d)[:, ::2], wide[:, 1::2]),
        "transposed": (torch.randn(d, m).T, torch.randn(d, v).T),
        "expanded rows": (torch.randn(1, d).expand(m, d), torch.randn(1, d).expand(v, d)),
        "expanded columns": (torch.randn(m, 1).expand(m, d), torch.randn(v, 1).expand(v, d)),
        "a row slice": (torch.randn(m + 3, d)[3:], torch.randn(v + 3, d)[3:]),
    }
    y = torch.randint(v, (2, m)).T  # [m, 2], strided
    w = torch.rand(1, 1).expand(m, 2)
    b = torch.randn(2 * v)[::2]
    for what, (q, e) in calls.items():
        copies = [t.clone() for t in (q, e, y, w, b)]
        options = {"weights": w, "item_bias": b, "reduction": reduction}
        upstream = torch.randn(m) if reduction == "none" else torch.randn(())
        q_, e_, b_ = (t.detach().requires_grad_() for t in (q, e, b))
        loss = catalog_cross_entropy(q_, e_, y, **{**options, "item_bias": b_})
        ours = [loss, *torch.autograd.grad(loss, (q_, e_, b_), upstream)]
        plain = gradients(
            catalog_cross_entropy, q.contiguous(), e.contiguous(), y, options, upstream
        )
        for a, c in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6, msg=what)
        assert all(torch.equal(a, c) for a, c in zip((q, e, y, w, b), copies, strict=True)), what


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_repeating_a_call_repeats_its_bits(reduction: str) -> None:
    q, e, y, options = problem(150, 700, 24, 3, bias=True)
    y[:, 0] = 5  # many rows add to one item
    upstream = torch.randn(150) if reduction == "none" else torch.randn(())
    options["reduction"] = reduction
    one = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    two = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_autocast_casts_like_mm_and_returns_float32() -> None:
    q, e, y, _ = problem(40, 90, 16)
    q_, e_ = oracles.leaves(q, e)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = catalog_cross_entropy(q_, e_, y)
        mixed = catalog_cross_entropy(q_.bfloat16(), e_, y)
    assert loss.dtype == torch.float32 and torch.equal(loss, mixed)
    # the operands are rounded to bfloat16, the sums are not
    assert torch.equal(loss, catalog_cross_entropy(q.bfloat16(), e.bfloat16(), y))
    assert not torch.equal(loss, catalog_cross_entropy(q, e, y))
    found = torch.autograd.grad(loss, (q_, e_))
    assert all(g.dtype == torch.float32 for g in found)
    wide = gradients(catalog_cross_entropy, q, e, y, {}, torch.ones(()))
    torch.testing.assert_close(found[0], wide[1], rtol=0.05, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = catalog_cross_entropy(q.double(), e.double(), y)
    assert exact.dtype == torch.float64


# ---- the dispatcher ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction: str) -> None:
    q, e, y, options = problem(5, 12, 4, 2, bias=True)
    q, e, b = oracles.leaves(q, e, options["item_bias"])
    arguments = (
        q, e, y, options["weights"], b, 1, 0.5, reduction, [True, True, True], "blocked",
    )  # fmt: skip
    y[:] = y.clamp(min=1)
    torch.library.opcheck(OPERATOR, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_gives_the_bits_of_eager(reduction: str) -> None:
    q, e, y, options = problem(20, 150, 8, 2, bias=True, first=1)
    options["reduction"] = reduction
    upstream = torch.randn(20) if reduction == "none" else torch.randn(())
    compiled = torch.compile(catalog_cross_entropy, fullgraph=True)
    eager = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    traced = gradients(compiled, q, e, y, options, upstream)
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))
    # nobody reads the ids of a compiled call: the row of a wrong one is NaN, the others stand
    y = y.clone()
    y[3, 0] = 150
    y[4, 1] = 0  # below first_item
    with torch.no_grad():
        rows = torch.compile(catalog_cross_entropy, fullgraph=True)(
            q, e, y, **{**options, "reduction": "none"}
        )
        fine = catalog_cross_entropy(
            q[5:], e, y[5:], **{**options, "weights": options["weights"][5:], "reduction": "none"}
        )
    assert rows[3:5].isnan().all() and rows[:3].isfinite().all()
    torch.testing.assert_close(rows[5:], fine)


def test_the_reference_compiles_too() -> None:
    q, e, y, options = problem(6, 20, 4, 2)
    with backend("reference"):
        compiled = torch.compile(catalog_cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(q, e, y, **options), catalog_cross_entropy(q, e, y, **options)
        )


def test_a_dispatch_mode_sees_one_operator_and_a_plain_call_bypasses_it() -> None:
    q, e, y, _ = problem(5, 12, 4)
    q, e = oracles.leaves(q, e)
    with Watch() as watch:
        loss = catalog_cross_entropy(q, e, y)
    assert "seqrec_kernels.catalog_cross_entropy.default" in watch.names
    plain = catalog_cross_entropy(q, e, y)
    assert torch.equal(loss, plain)
    assert "Direct" in str(plain.grad_fn) and "Direct" not in str(loss.grad_fn)
    for a, b in zip(
        torch.autograd.grad(loss, (q, e)), torch.autograd.grad(plain, (q, e)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("m", "v"), [(1200, 3000), (250, 150_000)])
def test_no_tensor_is_larger_than_the_workspace_or_an_input(m: int, v: int, reduction: str) -> None:
    q, e = oracles.leaves(torch.randn(m, 4), torch.randn(v, 4))
    call = blocked.Problem(q, e, torch.randint(v, (m,)), None, None, 0, 1.0, reduction)
    needs = [True, True, False]
    # the operator's body, which a mode outside the call would see as one step
    with Watch() as watch, torch.no_grad():
        loss, saved = blocked.forward(call, needs)
        blocked.backward(torch.ones_like(loss), call, saved, needs)
    tiles = blocked.TILES
    workspace = max(tiles.tile_rows * tiles.tile_items, min(tiles.one_pass, tiles.most_rows * 3008))
    assert watch.largest <= 4 * max(workspace, v * 4, m * 4)
    assert watch.largest < 4 * m * v / 6


MEMORY = """
from seqrec_kernels import catalog_cross_entropy

m, v, d, reduction = 4096, 100_000, 32, sys.argv[1]

def run(m, v):
    q, e = torch.randn(m, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    y = torch.randint(v, (m,))
    q.grad, e.grad = torch.zeros_like(q), torch.zeros_like(e)
    before = peak()
    catalog_cross_entropy(q, e, y, reduction=reduction).sum().backward()
    return peak() - before

run(8, 16)
print(run(m, v) / (m * v * 4))
"""


@pytest.mark.parametrize("implementation", ["blocked", "native"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_peak_resident_memory_stays_below_five_percent_of_the_matrix(
    reduction: str, implementation: str
) -> None:
    if implementation == "native" and native.missing():
        pytest.skip(native.missing())
    share = printed(MEMORY, reduction, backend=implementation)
    assert 0.0 < share < 0.05, f"{share:.2%} of M * V * 4 bytes"


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reduction: str, reentrant: bool) -> None:
    q, e, y, options = problem(5, 9, 4)
    options["reduction"] = reduction
    expected = oracles.leaves(q, e)
    catalog_cross_entropy(*expected, y, **options).sum().backward()
    found = oracles.leaves(q, e)
    loss = checkpoint(
        lambda q, e: catalog_cross_entropy(q, e, y, **options), *found, use_reentrant=reentrant
    )
    loss.sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_forward_mode_and_function_transforms_are_refused_with_the_way_out() -> None:
    q, e, y, _ = problem(5, 9, 4)

    def loss(q: Tensor) -> Tensor:
        return catalog_cross_entropy(q, e, y)

    def dual(q: Tensor) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            made = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
            return torch.autograd.forward_ad.unpack_dual(loss(made)).tangent

    calls = [
        lambda: dual(q),
        lambda: torch.func.jvp(loss, (q,), (torch.ones_like(q),))[1],
        lambda: torch.func.grad(loss)(q),
        lambda: torch.func.vmap(loss)(q.expand(2, 5, 4)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r'torch\.func .*backend\("reference"\)'):
            call()
    with backend("reference"):
        tangent, also, gradient, batch = (call() for call in calls)
    torch.testing.assert_close(tangent, gradient.sum())
    torch.testing.assert_close(also, gradient.sum())
    torch.testing.assert_close(batch, loss(q).expand(2))


def test_the_reference_rounds_nothing_but_its_operands_under_autocast() -> None:
    q, e, y, _ = problem(30, 50, 20)
    with backend("reference"):
        expected = catalog_cross_entropy(q.bfloat16(), e.bfloat16(), y)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(catalog_cross_entropy(q, e, y), expected)


def test_autocast_lets_no_wrong_argument_pass() -> None:
    q, e, y, _ = problem(5, 9, 4)
    for cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            with pytest.raises(TypeError, match=r"queries .* not torch\.int64"):
                catalog_cross_entropy(q.long(), e, y)
            with pytest.raises(TypeError, match=r"queries must be a torch\.Tensor, not ndarray"):
                catalog_cross_entropy(q.numpy(), e, y)  # type: ignore[arg-type]


def test_tracing_and_meta_tensors_read_no_ids() -> None:
    q, e, y, _ = problem(5, 9, 4)
    graph = make_fx(lambda y: catalog_cross_entropy(q, e, y))(y)
    other = y.flip(0)
    assert torch.equal(graph(other), catalog_cross_entropy(q, e, other))
    q, e = oracles.leaves(q.to("meta"), e.to("meta"))
    loss = catalog_cross_entropy(q, e, y.to("meta"), reduction="none")
    assert loss.shape == (5,) and torch.autograd.grad(loss.sum(), e)[0].shape == (9, 4)
