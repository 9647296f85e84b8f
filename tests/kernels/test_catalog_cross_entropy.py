"""catalog_cross_entropy against an independent float64 oracle, and every promise it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cross_entropy_calls import gradients, problem
from torch import Tensor

import seqrec_kernels
from seqrec_kernels import backend, catalog_cross_entropy

OPERATOR = torch.ops.seqrec_kernels.catalog_cross_entropy.default
REDUCTIONS = ("mean", "sum", "none")


def agrees(q: Tensor, e: Tensor, y: Tensor, options: dict[str, Any], floor: float = 2e-6) -> None:
    """Loss and all gradients, under a random upstream gradient, against oracle and reference."""
    upstream = torch.randn(q.shape[:1] if options.get("reduction") == "none" else ())
    exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
    with backend("reference"):
        plain = gradients(catalog_cross_entropy, q, e, y, options, upstream)
        same = gradients(catalog_cross_entropy, q, e, y, options, upstream, torch.float64)
    ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    for name, *values in zip(("loss", "dq", "de", "db"), ours, exact, plain, same, strict=False):
        our, true, dense, dense64 = values
        torch.testing.assert_close(dense64, true, rtol=1e-10, atol=1e-12)
        oracles.close(our, true, dense, name, floor)


# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 8), (7, 33, 5), (9, 31, 50), (3, 129, 123)])
@pytest.mark.parametrize("slots", [None, 1, 4])
def test_agrees_with_float64_in_tiny_tiles(
    tiny_tiles: None, shape: tuple[int, int, int], slots: int | None, reduction: str
) -> None:
    q, e, y, options = problem(*shape, slots, bias=slots is not None, first=min(2, shape[1] - 1))
    agrees(q, e, y, {**options, "reduction": reduction})


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(130, 257, 64), (257, 4099, 16), (300, 2049, 33)])
def test_agrees_with_float64_in_real_tiles(shape: tuple[int, int, int], reduction: str) -> None:
    q, e, y, options = problem(*shape, 3, bias=True, first=1)
    agrees(q, e, y, {**options, "reduction": reduction})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_narrow_inputs_are_summed_in_float32(
    tiny_tiles: None, dtype: torch.dtype, reduction: str
) -> None:
    q, e, y, options = problem(9, 40, 24, 3, bias=True)
    q, e, options["weights"] = q.to(dtype), e.to(dtype), options["weights"].to(dtype)
    options["reduction"] = reduction
    upstream = torch.rand(9) if reduction == "none" else torch.rand(())
    ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
    assert [t.dtype for t in ours] == [torch.float32, dtype, dtype, torch.float32]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(ours[3].double(), exact[3], rtol=1e-5, atol=1e-6)
    # rounded once: at most half a unit in the last place from the exact gradient, plus float32's
    half = torch.finfo(dtype).eps / 2
    for our, true in zip(ours[1:3], exact[1:3], strict=True):
        assert ((our.double() - true).abs() <= half * 1.001 * true.abs() + 3e-6).all()


def test_equals_torch_for_hard_labels() -> None:
    q, e, y = torch.randn(50, 16), torch.randn(101, 16), torch.randint(101, (50,))
    y[::7] = -100
    theirs = F.cross_entropy(q @ e.T, y)
    y[::7] = -1
    torch.testing.assert_close(catalog_cross_entropy(q, e, y), theirs)


def test_repeated_targets_of_a_row_add_up(tiny_tiles: None) -> None:
    q, e = torch.randn(2, 6), torch.randn(9, 6)
    twice = catalog_cross_entropy(
        q, e, torch.tensor([[3, 3], [4, 5]]), torch.tensor([[0.25, 0.5], [1.0, 0.0]])
    )
    once = catalog_cross_entropy(q, e, torch.tensor([3, 4]), torch.tensor([0.75, 1.0]))
    torch.testing.assert_close(twice, once)


def test_default_weights_share_a_row_among_its_filled_slots() -> None:
    q, e = torch.randn(1, 6), torch.randn(9, 6)
    loss = catalog_cross_entropy(q, e, torch.tensor([[3, -1, 5]]))
    parts = [catalog_cross_entropy(q, e, torch.tensor([t])) for t in (3, 5)]
    torch.testing.assert_close(loss, sum(parts) / 2)


def test_weights_in_empty_slots_are_ignored_even_where_they_are_nan() -> None:
    q, e = oracles.leaves(torch.randn(2, 6), torch.randn(9, 6))
    y = torch.tensor([[3, -1], [-1, -1]])
    w = torch.tensor([[1.0, torch.nan], [torch.nan, torch.inf]])
    loss = catalog_cross_entropy(q, e, y, w)
    torch.testing.assert_close(loss, catalog_cross_entropy(q[:1], e, y[:1, 0]))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (q, e)))


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_a_row_counts_by_its_filled_slots_and_not_by_its_weights(name: str) -> None:
    q, e = torch.randn(3, 6), torch.randn(9, 6)
    y, w = torch.tensor([[3, 4], [2, -1], [-1, -1]]), torch.tensor([[1.0, 0.5], [0, 9], [9, 9]])
    with backend(name):
        total = catalog_cross_entropy(q, e, y, w, reduction="sum")
        rows = catalog_cross_entropy(q, e, y, w, reduction="none")
        mean = catalog_cross_entropy(q, e, y, w)
    torch.testing.assert_close(mean, total / 2)  # the second row has a target, of weight 0
    assert rows[1] == 0 and rows[2] == 0


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("m", [0, 3])
def test_without_a_row_that_counts_loss_and_gradients_are_zero(
    name: str, reduction: str, m: int
) -> None:
    q, e, b = oracles.leaves(torch.randn(m, 4), torch.randn(5, 4), torch.randn(5))
    y = torch.full((m, 2), -1)
    with backend(name):
        loss = catalog_cross_entropy(q, e, y, item_bias=b, reduction=reduction)
    assert loss.shape == ((m,) if reduction == "none" else ())
    assert loss.dtype == torch.float32 and not loss.any()
    found = torch.autograd.grad(loss.sum(), (q, e, b))
    assert all(g.shape == t.shape and not g.any() for g, t in zip(found, (q, e, b), strict=True))


def test_no_slots_at_all_is_no_row_that_counts() -> None:
    q, e = oracles.leaves(torch.randn(3, 4), torch.randn(5, 4))
    loss = catalog_cross_entropy(q, e, torch.empty(3, 0, dtype=torch.int64))
    found = torch.autograd.grad(loss, (q, e))
    assert loss == 0 and not any(g.any() for g in found)


def test_rows_below_first_item_get_no_gradient_and_no_probability() -> None:
    q, e = oracles.leaves(torch.randn(5, 4), torch.randn(9, 4))
    y = torch.randint(3, 9, (5,))
    loss = catalog_cross_entropy(q, e, y, first_item=3)
    torch.testing.assert_close(loss, catalog_cross_entropy(q, e[3:], y - 3))
    (found,) = torch.autograd.grad(loss, e)
    assert not found[:3].any() and found[3:].any(1).all()


# ---- numbers at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("size", [1e-30, 1e3, 1e15])
def test_extreme_logits_stay_finite(tiny_tiles: None, size: float, reduction: str) -> None:
    q, e, y, _ = problem(6, 20, 4)
    e[:, 0] = 1.0
    q = q * size
    options, upstream = {"reduction": reduction}, torch.ones(() if reduction == "mean" else 6)
    found = gradients(catalog_cross_entropy, q, e, y, options, upstream)
    exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
    for our, true in zip(found, exact, strict=True):
        assert our.isfinite().all()
        size = float(true.detach().abs().max())
        torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_a_bias_of_minus_infinity_takes_items_out(tiny_tiles: None, name: str) -> None:
    q, e, y, _ = problem(6, 30, 4)
    kept = torch.ones(30, dtype=torch.bool)
    kept[3:14] = False  # whole tiles of 5 among them
    y = torch.where(kept[y], y, 20)
    place = kept.cumsum(0) - 1
    b = torch.where(kept, torch.randn(30), -torch.inf)
    with backend(name):
        ours = gradients(
            catalog_cross_entropy, q, e, y, {"item_bias": b, "reduction": "none"}, torch.ones(6)
        )
        cut = gradients(
            catalog_cross_entropy,
            q, e[kept], place[y], {"item_bias": b[kept], "reduction": "none"}, torch.ones(6),
        )  # fmt: skip
    torch.testing.assert_close(ours[0], cut[0])
    torch.testing.assert_close(ours[1], cut[1])
    for full, part in zip(ours[2:], cut[2:], strict=True):
        torch.testing.assert_close(full[kept], part)
        assert not full[~kept].any()


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_a_target_taken_out_costs_infinity_unless_it_weighs_nothing(name: str) -> None:
    q, e = torch.randn(2, 4), torch.randn(6, 4)
    b = torch.tensor([0.0, -torch.inf, 0, 0, 0, 0])
    y, w = torch.tensor([[1, 2], [1, 2]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    with backend(name):
        loss = catalog_cross_entropy(q, e, y, w, item_bias=b, reduction="none")
    assert loss[0] == torch.inf
    assert loss[1].isfinite()


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_a_catalogue_taken_out_altogether_leaves_no_nan(tiny_tiles: None, name: str) -> None:
    """Rows that do not count, or weigh nothing, add 0 and no gradient; the others cost infinity."""
    q, e, _, _ = problem(3, 9, 4)
    bias = torch.full((9,), -torch.inf)
    targets = torch.tensor([[-1], [2], [3]])
    for weights, last in (([0, 0, 0], 0.0), ([0, 0, 1], torch.inf)):
        found = oracles.leaves(q, e, bias)
        with backend(name):
            loss = catalog_cross_entropy(
                found[0],
                found[1],
                targets,
                torch.tensor(weights, dtype=torch.float32)[:, None],
                item_bias=found[2],
                reduction="none",
            )
            assert loss.tolist() == [0.0, 0.0, last]
            gradients = torch.autograd.grad(loss[:2].sum(), found)
        assert all(not g.any() for g in gradients)  # NaN is not zero


def test_one_item_is_certain() -> None:
    q, e = oracles.leaves(torch.randn(4, 8), torch.randn(1, 8))
    loss = catalog_cross_entropy(q, e, torch.zeros(4, dtype=torch.int64))
    assert loss == 0
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(loss, (q, e)))


# ---- errors --------------------------------------------------------------------------------------


def test_arguments_are_named_with_their_value() -> None:
    q, e, y = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([1, 2, 3])
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, r"queries are torch.float32 but items are torch.float16", (q, e.half(), y), {}),
        (TypeError, r"queries must be .*not torch.int64", (q.long(), e, y), {}),
        (TypeError, r"items must be a torch.Tensor, not list", (q, [1], y), {}),
        (ValueError, r"queries must have two dimensions, not shape \(4,\)", (q[0], e, y), {}),
        (ValueError, r"queries have width 4 but items have width 3", (q, e[:, :3], y), {}),
        (TypeError, r"targets must be int64, not torch.int32", (q, e, y.int()), {}),
        (ValueError, r"targets must be \[3\] or \[3, T\], not \(2,\)", (q, e, y[:2]), {}),
        (ValueError, r"targets must be", (q, e, y[:, None, None]), {}),
        (ValueError, r"weights must have the shape of targets, \(3,\)", (q, e, y, q), {}),
        (TypeError, r"weights are torch.float64 but", (q, e, y, torch.ones(3).double()), {}),
        (ValueError, r"weights require a gradient", (q, e, y, torch.ones(3).requires_grad_()), {}),
        (TypeError, r"item_bias must be torch.float32", (q, e, y), {"item_bias": e[:, 0].half()}),
        (ValueError, r"item_bias must be \[6\], not \(3,\)", (q, e, y), {"item_bias": q[:, 0]}),
        (ValueError, r"first_item is 6; it must be in \[0, 6\)", (q, e, y), {"first_item": 6}),
        (ValueError, r"first_item is -1", (q, e, y), {"first_item": -1}),
        (TypeError, r"first_item must be an int, not float", (q, e, y), {"first_item": 1.0}),
        (ValueError, r"temperature is 0", (q, e, y), {"temperature": 0.0}),
        (ValueError, r"temperature is nan", (q, e, y), {"temperature": float("nan")}),
        (TypeError, r"temperature must be a float", (q, e, y), {"temperature": torch.ones(())}),
        (ValueError, r"reduction is 'avg'", (q, e, y), {"reduction": "avg"}),
        (IndexError, r"targets\[1\] is 6; it must be in \[0, 6\) or -1", (q, e, y + 4), {}),
        (IndexError, r"targets\[0\] is 1; it must be in \[2, 6\)", (q, e, y), {"first_item": 2}),
        (IndexError, r"targets\[0\] is -2", (q, e, torch.tensor([-2, 1, 1])), {}),
    ]
    for kind, message, arguments, options in cases:
        with pytest.raises(kind, match=message):
            catalog_cross_entropy(*arguments, **options)


def test_a_dtensor_is_refused_in_one_line() -> None:
    class DTensor(Tensor):
        pass

    q = torch.randn(3, 4).as_subclass(DTensor)
    with pytest.raises(TypeError, match="queries is a DTensor") as caught:
        catalog_cross_entropy(q, torch.randn(6, 4), torch.tensor([1, 2, 3]))
    assert "\n" not in str(caught.value)


def test_ids_are_checked_inside_compiled_graphs_on_request() -> None:
    code = (
        "import torch\n"
        "from seqrec_kernels import catalog_cross_entropy as loss\n"
        "run = torch.compile(loss, fullgraph=True, backend='aot_eager')\n"
        "q, e = torch.randn(2, 3), torch.randn(4, 3)\n"
        "run(q, e, torch.tensor([1, -1]))\n"
        "try:\n"
        "    run(q, e, torch.tensor([1, 4]))\n"
        "except IndexError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SEQREC_CHECK_IDS": "1"},
    )
    assert "targets[1] is 4; it must be in [0, 4) or -1" in done.stdout


# ---- the module form -----------------------------------------------------------------------------


def test_the_module_is_the_function() -> None:
    q, e, y, options = problem(5, 12, 4, 2, bias=True, first=1)
    module = seqrec_kernels.nn.CatalogCrossEntropy(first_item=1, temperature=0.7, reduction="sum")
    ours = module(q, e, y, options["weights"], item_bias=options["item_bias"])
    assert torch.equal(ours, catalog_cross_entropy(q, e, y, **{**options, "reduction": "sum"}))
    assert "temperature=0.7" in repr(module)
    assert not list(module.parameters())
    with pytest.raises(ValueError, match="temperature is -1"):
        seqrec_kernels.nn.CatalogCrossEntropy(temperature=-1)
