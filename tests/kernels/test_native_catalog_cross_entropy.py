"""The loss in C++, in every instruction set, both plans, against float64 and against itself."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cross_entropy_calls import gradients, neither_threads_nor_repetition_change_a_bit, problem
from native_versions import threads, version  # noqa: F401 (fixtures)
from torch import Tensor

from seqrec_kernels import backend, catalog_cross_entropy
from seqrec_kernels.ops.catalog_cross_entropy import native


def upstream_of(q: Tensor, options: dict[str, Any]) -> Tensor:
    return torch.randn(q.shape[:1] if options.get("reduction") == "none" else ())


def agrees(q: Tensor, e: Tensor, y: Tensor, options: dict[str, Any]) -> None:
    """Loss and gradients against the float64 oracle, no worse than twice plain torch."""
    upstream = upstream_of(q, options)
    exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
    with backend("reference"):
        plain = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    for name, our, true, dense in zip(
        ("loss", "dq", "de", "db")[: len(ours)], ours, exact, plain, strict=True
    ):
        assert our.isfinite().all(), name
        oracles.close(our, true, dense, name)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 2, 8), (63, 5, 3), (64, 287, 16), (65, 289, 50), (2, 97, 123)],
)
def test_agrees_with_float64_on_odd_shapes(
    shape: tuple[int, int, int], reduction: str, plan: str
) -> None:
    q, e, y, options = problem(*shape, 3, bias=True, first=min(1, shape[1] - 1))
    agrees(q, e, y, {**options, "reduction": reduction})


@pytest.mark.parametrize("shape", [(130, 2049, 33), (66, 4700, 17)])
def test_agrees_with_float64_over_several_chunks(shape: tuple[int, int, int], plan: str) -> None:
    q, e, y, options = problem(*shape)
    agrees(q, e, y, options)


def test_float16_is_summed_in_float32_and_rounded_once(plan: str) -> None:
    dtype = torch.float16
    q, e, y, options = problem(66, 300, 50, 3, bias=True)
    q, e, options["weights"] = q.to(dtype), e.to(dtype), options["weights"].to(dtype)
    upstream = torch.rand(())
    ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
    assert [t.dtype for t in ours] == [torch.float32, dtype, dtype, torch.float32]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    half = torch.finfo(dtype).eps / 2
    tiny = torch.finfo(dtype).smallest_normal
    for our, true in zip(ours[1:3], exact[1:3], strict=True):
        assert ((our.double() - true).abs() <= half * 1.01 * true.abs() + 3e-6 + tiny).all()


def test_neither_threads_nor_repetition_change_a_bit(plan: str, threads: int) -> None:  # noqa: F811
    q, e, y, options = problem(150, 4700, 20, 2, bias=True, first=1)
    neither_threads_nor_repetition_change_a_bit(q, e, y, options, threads)


@pytest.mark.parametrize("wanted", ["q", "e", "b", "qe", "qb", "eb"])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wanted: str, plan: str) -> None:
    q, e, y, options = problem(70, 600, 20, 2, bias=True)
    bias = options.pop("item_bias")
    q, e, bias = oracles.leaves(q, e, bias)
    every = dict(zip("qeb", torch.autograd.grad(
        catalog_cross_entropy(q, e, y, item_bias=bias, **options), (q, e, bias)
    ), strict=True))  # fmt: skip
    given = {"q": q, "e": e, "b": bias}
    inputs = {name: t if name in wanted else t.detach() for name, t in given.items()}
    loss = catalog_cross_entropy(inputs["q"], inputs["e"], y, item_bias=inputs["b"], **options)
    found = torch.autograd.grad(loss, [given[name] for name in wanted])
    for name, gradient in zip(wanted, found, strict=True):
        # which plan runs may depend on what is wanted: nothing need be kept for queries alone
        torch.testing.assert_close(gradient, every[name], rtol=1e-5, atol=1e-8)
        if plan != "recompute":
            assert torch.equal(gradient, every[name]), name


def test_strided_expanded_and_unaligned_inputs_none_written(plan: str) -> None:
    y = torch.randint(90, (40,))
    tables = {
        "columns": (torch.randn(40, 32)[:, ::2], torch.randn(16, 90).T),
        "expanded": (torch.randn(1, 16).expand(40, 16), torch.randn(1, 16).expand(90, 16)),
        "unaligned": (torch.randn(41, 16).view(-1)[7:647].view(40, 16), torch.randn(91, 16)[1:]),
        "overlapping": (torch.randn(55).as_strided((40, 16), (1, 1)), torch.randn(90, 16)),
    }
    for name, (q, e) in tables.items():
        copies = q.clone(), e.clone()
        bias = torch.randn(180)[::2]
        ours, straight = [], []
        for into, (a, b, c) in ((ours, (q, e, bias)), (straight, (*copies, bias.contiguous()))):
            a, b, c = (t.detach().requires_grad_() for t in (a, b, c))
            loss = catalog_cross_entropy(a, b, y, item_bias=c)
            into.extend([loss, *torch.autograd.grad(loss, (a, b, c))])
        assert torch.equal(q, copies[0]) and torch.equal(e, copies[1])
        for a, b in zip(ours, straight, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("far", ["rows", "columns"])
def test_offsets_beyond_two_to_the_31(far: str) -> None:
    # 2**31 and more elements of address space, of which a few pages are ever touched
    storage = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    stride = (2**30, 1) if far == "rows" else (1, 2**30)
    e = storage.as_strided((3, 3), stride)
    values = torch.randn(3, 3).bfloat16()
    e.copy_(values)
    q, y = torch.randn(5, 3).bfloat16(), torch.tensor([0, 1, 2, 2, -1])
    a, b, c = (t.detach().requires_grad_() for t in (q, e, values))
    ours = catalog_cross_entropy(a, b, y)
    near = catalog_cross_entropy(a, c, y)
    assert torch.equal(ours, near)
    for there, here in zip(
        torch.autograd.grad(ours, (a, b)), torch.autograd.grad(near, (a, c)), strict=True
    ):
        assert torch.equal(there, here)


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e15])
def test_extreme_logits_stay_finite(size: float, plan: str) -> None:
    q, e, y, _ = problem(66, 300, 4)
    e[:, 0] = 1.0
    upstream = torch.ones(())
    found = gradients(catalog_cross_entropy, q * size, e, y, {}, upstream)
    exact = gradients(oracles.cross_entropy, q * size, e, y, {}, upstream, torch.float64)
    for our, true in zip(found, exact, strict=True):
        assert our.isfinite().all()
        scale = float(true.detach().abs().max())
        torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=1e-4 * scale)


def test_rising_logits_move_the_shift_in_every_tile(plan: str) -> None:
    # each tile's largest logit is above everything before it: all sums are rescaled every time
    q, e = torch.ones(65, 1), torch.linspace(-90, 90, 3000)[:, None]
    agrees(q, e, torch.randint(3000, (65,)), {})


def test_a_row_that_is_nan_spoils_no_other_rows_loss(plan: str) -> None:
    q, e, y, _ = problem(66, 300, 8)
    q[3, 2] = torch.nan
    loss = catalog_cross_entropy(q, e, y, reduction="none")
    assert loss[3].isnan() and loss.isnan().sum() == 1
    leaves = oracles.leaves(q, e)
    total = catalog_cross_entropy(*leaves, y)
    found = torch.autograd.grad(total, leaves[0])[0]
    assert total.isnan() and found[3].isnan().all() and found.isnan().any(1).sum() == 1


def test_items_taken_out_by_an_infinite_bias(plan: str) -> None:
    q, e, y, _ = problem(66, 700, 8)
    kept = torch.ones(700, dtype=torch.bool)
    kept[:300] = False  # more than the first tile
    y = torch.where(kept[y], y, 500)
    bias = torch.where(kept, torch.randn(700), -torch.inf)
    ours = gradients(catalog_cross_entropy, q, e, y, {"item_bias": bias}, torch.ones(()))
    cut = gradients(
        catalog_cross_entropy, q, e[kept], y - 300, {"item_bias": bias[kept]}, torch.ones(())
    )
    torch.testing.assert_close(ours[0], cut[0])
    torch.testing.assert_close(ours[1], cut[1], rtol=1e-5, atol=1e-7)
    for full, part in zip(ours[2:], cut[2:], strict=True):
        torch.testing.assert_close(full[kept], part, rtol=1e-5, atol=1e-7)
        assert not full[~kept].any()
    nothing = torch.full((700,), -torch.inf)
    lost = gradients(catalog_cross_entropy, q, e, y, {"item_bias": nothing}, torch.ones(()))
    assert lost[0] == torch.inf


def test_the_graph_may_be_walked_twice_and_never_differentiated(plan: str) -> None:
    q, e = oracles.leaves(torch.randn(5, 4), torch.randn(9, 4))
    loss = catalog_cross_entropy(q, e, torch.randint(9, (5,)))
    once = torch.autograd.grad(loss, (q, e), retain_graph=True)
    twice = torch.autograd.grad(loss, (q, e), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        twice[0].sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_gives_the_bits_of_eager(reduction: str) -> None:
    q, e, y, options = problem(20, 150, 8, 2, bias=True, first=1)
    options["reduction"] = reduction
    upstream = upstream_of(q, options)
    compiled = torch.compile(catalog_cross_entropy, fullgraph=True, backend="aot_eager")
    eager = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    traced = gradients(compiled, q, e, y, options, upstream)
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))
    y[3, 0] = 150  # nobody reads the ids of a compiled call
    with torch.no_grad():
        assert compiled(q, e, y, **{**options, "reduction": "none"})[3].isnan()


def test_what_forward_saves_has_the_shapes_that_tracing_promises(plan: str) -> None:
    q, e, y, options = problem(7, 30, 5, 2, bias=True)
    for reduction in ("mean", "none"):
        for needs in ([True, True, True], [True, False, False], [False, False, True], [False] * 3):
            call = native.Problem(
                q, e, y, options["weights"], options["item_bias"], 0, 1.0, reduction
            )
            _, saved = native.forward(call, needs)
            assert [tuple(t.shape) for t in saved] == native.saved_shapes(call, needs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_have_no_loss_and_zero_gradients(reduction: str, plan: str) -> None:
    q, e = torch.randn(0, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    bias = torch.randn(9, requires_grad=True)
    y = torch.empty(0, dtype=torch.int64)
    loss = catalog_cross_entropy(q, e, y, item_bias=bias, first_item=2, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == ((0,) if reduction == "none" else ()) and float(loss.sum()) == 0
    for tensor in (q, e, bias):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_catalogue_taken_out_altogether(reduction: str, plan: str) -> None:
    """A weighted target costs +inf, one of weight 0 and an empty slot nothing."""
    q, e = torch.randn(3, 5), torch.randn(9, 5)
    out = torch.full((9,), -torch.inf)
    y, weights = torch.tensor([4, 4, -1]), torch.tensor([0.0, 0.0, 1.0])
    options: dict[str, Any] = {"item_bias": out, "reduction": reduction}
    assert float(catalog_cross_entropy(q, e, y, weights, **options).sum()) == 0
    assert float(catalog_cross_entropy(q, e, y, **options).sum()) == torch.inf
