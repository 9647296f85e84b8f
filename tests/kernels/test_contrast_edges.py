"""The contrastive losses where numbers degenerate, ratios are drawn, or arguments are wrong."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from contrast_calls import LOSSES, agrees, gradients, problem
from torch import Tensor

import seqrec_kernels
from seqrec_kernels import (
    backend,
    focal_info_nce,
    hard_negative_info_nce,
    info_nce,
    philox,
)

# ---- numbers at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_extreme_norms_stay_finite(tiny_tiles: None, size: float, loss: str, name: str) -> None:
    """Rows of that norm on every side, beside ordinary ones."""
    tensors, options = problem(6, 7, 3, 4)
    for t in tensors:
        assert t is not None
        t[1:3] = torch.nn.functional.normalize(t[1:3], dim=1) * size
    options |= {**LOSSES[loss], "reduction": "none"}
    with backend(name):
        ours = gradients(hard_negative_info_nce, tensors, options, torch.ones(6))
    exact = gradients(oracles.contrast, tensors, options, torch.ones(6), torch.float64)
    for our, true in zip(ours, exact, strict=True):
        assert our.isfinite().all()
        scale = max(float(true.detach().abs().max()), 1e-3)
        torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("loss", ["plain mixed", "official", "paper"])
@pytest.mark.parametrize("mix", [0.5, 0.4, 1.0, (0.49, 0.51)])
def test_equal_and_opposite_pairs(
    tiny_tiles: None, mix: float | tuple[float, float], loss: str, name: str
) -> None:
    """Between opposite directions at the ratio 1/2 there is no mixed negative: h is 0."""
    anchors = torch.randn(5, 6)
    negatives = torch.cat([-3 * anchors, anchors, -anchors[:2] / 7, torch.zeros(1, 6)])
    tensors: list[Tensor | None] = [anchors, torch.randn(5, 6), negatives, None]
    options = {**LOSSES[loss], "mix": mix, "seed": 3, "reduction": "none"}
    with backend(name):
        ours = gradients(hard_negative_info_nce, tensors, options, torch.ones(5))
    exact = gradients(oracles.contrast, tensors, options, torch.ones(5), torch.float64)
    # a drawn ratio beside 1/2 leaves a difference of nearly opposite vectors
    tolerance = 2e-2 if isinstance(mix, tuple) else 1e-4
    for our, true in zip(ours, exact, strict=True):
        assert our.isfinite().all()
        size = float(true.detach().abs().max())
        torch.testing.assert_close(our.double(), true, rtol=tolerance, atol=tolerance * size)


def test_opposite_pairs_add_a_mixed_negative_of_similarity_zero() -> None:
    a = torch.tensor([[3.0, 0.0]], requires_grad=True)
    loss = hard_negative_info_nce(a, torch.zeros(1, 2), -a.detach(), mix=0.5, mix_weight=2.0)
    s = -9.0
    torch.testing.assert_close(float(loss.detach()), math.log(1 + math.exp(s) + 2.0))
    (found,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(found[0, 0].item(), -3 * math.exp(s) / (3 + math.exp(s)))


def test_an_anchor_of_zeros_meets_the_negatives_themselves() -> None:
    """unit(0) = 0, so h is the negative; the margin makes its gradient show."""
    a = torch.zeros(1, 3, requires_grad=True)
    n = torch.tensor([[1.0, -2.0, 0.5]])
    options: dict[str, Any] = {"focal_scale": 4.0, "margin": 0.5, "mix": 0.3, "mix_weight": 0.6}
    for name in ("blocked", "reference"):
        with backend(name):
            loss = hard_negative_info_nce(a, n, n, **options)
        torch.testing.assert_close(float(loss.detach()), math.log(2.6))
        (found,) = torch.autograd.grad(loss, a)
        torch.testing.assert_close(found, 0.5 * n * 1.6 / 2.6)


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("noise", [None, 3])
def test_all_pairs_left_out(tiny_tiles: None, noise: int | None, loss: str, name: str) -> None:
    """Every pair of some rows, then of all: what is left is the noise, or a loss of 0."""
    tensors, options = problem(7, 8, noise, 4)
    options |= {**LOSSES[loss], "reduction": "none"}
    for kept in (3, 0):
        options["negative_ids"] = torch.full((8,), 9)
        options["anchor_ids"] = torch.where(torch.arange(7) < kept, 1, 9)
        with backend(name):
            ours = gradients(hard_negative_info_nce, tensors, options, torch.ones(7))
        exact = gradients(oracles.contrast, tensors, options, torch.ones(7), torch.float64)
        for our, true in zip(ours, exact, strict=True):
            torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=1e-5)
        assert not ours[0][kept:].any() or noise
        if noise is None:
            assert not ours[1][kept:].any() and not ours[2][kept:].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_left_out_weighs_nothing_however_large_it_is(loss: str) -> None:
    """It is gone before the row's maximum is taken, not subtracted after."""
    tensors, options = problem(4, 6, 2, 4)
    options |= LOSSES[loss]
    options["anchor_ids"] = torch.zeros(4, dtype=torch.int64)
    options["negative_ids"] = torch.arange(6)  # the first negative is left out everywhere
    without = gradients(hard_negative_info_nce, tensors, options, torch.ones(()))
    assert tensors[0] is not None and tensors[2] is not None
    tensors[2][0] = 1e5 * tensors[0][0]
    large = gradients(hard_negative_info_nce, tensors, options, torch.ones(()))
    for a, b in zip(large, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_ties_share_alike(tiny_tiles: None) -> None:
    """Equal negatives have equal gradients, and n of them add log n to their logit."""
    tensors, options = problem(5, 4, None, 6, ids=False)
    assert tensors[2] is not None
    tensors[2] = tensors[2][:1].repeat(4, 1)
    settings = {**options, **LOSSES["official"]}
    agrees(tensors, settings)
    *_, dn = gradients(hard_negative_info_nce, tensors, settings, torch.ones(()))
    assert dn.any()
    torch.testing.assert_close(dn, dn[:1].expand_as(dn))


def test_small_losses_keep_their_digits() -> None:
    a = torch.tensor([[6.0, 0.0]])
    loss = info_nce(a, a, -a / 2, reduction="none")
    assert float(loss) == pytest.approx(math.log1p(math.exp(-54)), rel=1e-4)


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_ids_than_float32_counts() -> None:
    # places 2**24 and 2**24 + 1 are one float32; only the second is the anchor's
    ids = torch.arange(2**24 + 2)
    negatives = torch.zeros(len(ids), 1)
    negatives[-2:] = torch.tensor([[40.0], [80.0]])
    one = torch.ones(1, 1)
    loss = info_nce(one, 0 * one, negatives, anchor_ids=ids[-1:], negative_ids=ids)
    assert float(loss) == pytest.approx(40, abs=1e-3)


@pytest.mark.parametrize("value", [0, -1, -(2**63), 2**63 - 1, 2**24 + 1])
def test_no_id_is_special_and_near_ones_differ(value: int) -> None:
    tensors, options = problem(3, 4, None, 5, ids=False)
    other = value - 1 if value > 0 else value + 1
    ids = {
        "anchor_ids": torch.tensor([value, other, value]),
        "negative_ids": torch.tensor([value, value, other, other]),
    }
    plain = {
        "anchor_ids": torch.tensor([5, 6, 5]), "negative_ids": torch.tensor([5, 5, 6, 6])
    }  # fmt: skip
    a, p, n, _ = tensors
    found = info_nce(a, p, n, reduction="none", **options, **ids)
    assert torch.equal(found, info_nce(a, p, n, reduction="none", **options, **plain))
    assert not torch.equal(found, info_nce(a, p, n, reduction="none", **options))


# ---- drawn ratios --------------------------------------------------------------------------------


def drawn_ratios(rows: int, count: int, seed: int | Tensor, name: str) -> Tensor:
    """Ratios read back from the loss, one pair a call: all other pairs are left out.

    All vectors are orthogonal units, so the mixed similarity is x / sqrt(x^2 + (1 - x)^2).
    """
    a, n = torch.tensor([[1.0, 0.0]]).expand(rows, 2), torch.tensor([[0.0, 1.0]]).expand(count, 2)
    a, n = a.double(), n.double()
    found = torch.empty(rows, count)
    for k in range(count):
        ids = torch.zeros(count, dtype=torch.int64)
        ids[k] = 1
        with backend(name):
            losses = hard_negative_info_nce(
                a.float() if name == "blocked" else a,
                torch.zeros_like(a, dtype=torch.float32 if name == "blocked" else torch.float64),
                n.float() if name == "blocked" else n,
                anchor_ids=torch.zeros(rows, dtype=torch.int64),
                negative_ids=ids,
                mix=(0.0, 1.0),
                mix_weight=1.0,
                seed=seed,
                reduction="none",
            )
        u = torch.log(losses.double().exp() - 2)
        tangent = u / (1 - u * u).clamp(min=0).sqrt()
        found[:, k] = tangent / (1 + tangent)
    return found


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_ratios_are_the_contracts_known_answers(tiny_tiles: None, name: str) -> None:
    found = drawn_ratios(6, 8, 3, name)
    known = {(0, 0): 0.08167261, (0, 1): 0.67114049, (1, 0): 0.15195173, (5, 7): 0.27169479}
    for (r, k), value in known.items():
        assert float(found[r, k]) == pytest.approx(value, abs=2e-6)
    rows, columns = torch.arange(6)[:, None], torch.arange(8)
    torch.testing.assert_close(found, philox.uniform(3, 1, columns, rows), rtol=0, atol=1e-3)


def test_a_seed_may_be_a_tensor_and_all_its_64_bits_count() -> None:
    tensors, options = problem(5, 6, 2, 4)
    a, p, n, e = tensors

    def loss(seed: Any) -> float:
        return float(
            hard_negative_info_nce(
                a, p, n, noise=e, mix=(0.1, 0.9), mix_weight=1.0, seed=seed, **options
            )
        )

    assert loss(7) == loss(torch.tensor(7)) != loss(8)
    assert loss(-1) == loss(2**64 - 1) == loss(torch.tensor(-1)) != loss(2**32 - 1)
    assert loss(2**40) != loss(0)
    # a constant ratio draws nothing
    fixed = {**options, "noise": e, "mix": 0.3, "mix_weight": 1.0}
    one, two = (hard_negative_info_nce(a, p, n, seed=seed, **fixed) for seed in (1, 2))
    assert torch.equal(one, two)


# ---- errors --------------------------------------------------------------------------------------


def test_arguments_are_named_with_their_value() -> None:
    a, n = torch.randn(3, 4), torch.randn(6, 4)
    i, j = torch.arange(3), torch.arange(6)
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, r"anchors must be a torch.Tensor, not list", ([1], a, n), {}),
        (TypeError, r"anchors are torch.float32 but negatives are torch.float16",
         (a, a, n.half()), {}),
        (TypeError, r"negatives must be .*not torch.int64", (a, a, n.long()), {}),
        (TypeError, r"anchors are .* but noise are torch.float64", (a, a, n),
         {"noise": n.double()}),
        (ValueError, r"negatives must have two dimensions, not shape \(4,\)", (a, a, n[0]), {}),
        (ValueError, r"positives must have the shape of anchors, \(3, 4\), not", (a, n, n), {}),
        (ValueError, r"anchors have width 4 but negatives have width 3", (a, a, n[:, :3]), {}),
        (ValueError, r"anchors have width 4 but noise have width 2", (a, a, n),
         {"noise": n[:, :2]}),
        (ValueError, r"anchor_ids without negative_ids; give both", (a, a, n), {"anchor_ids": i}),
        (ValueError, r"negative_ids without anchor_ids", (a, a, n), {"negative_ids": j}),
        (ValueError, r"negative_ids must be \[6\], not \(3,\)", (a, a, n),
         {"anchor_ids": i, "negative_ids": i}),
        (TypeError, r"anchor_ids must be int64, not torch.int32", (a, a, n),
         {"anchor_ids": i.int(), "negative_ids": j}),
        (ValueError, r"temperature is 0", (a, a, n), {"temperature": 0}),
        (ValueError, r"focal_scale is -1", (a, a, n), {"focal_scale": -1.0}),
        (ValueError, r"margin is 0.2 but there is no focal_scale", (a, a, n), {"margin": 0.2}),
        (ValueError, r"margin is inf", (a, a, n), {"margin": math.inf, "focal_scale": 1.0}),
        (ValueError, r"mix is 1.5; it must be finite and at least 0 and at most 1", (a, a, n),
         {"mix": 1.5}),
        (ValueError, r"mix\[1\] is -0.1", (a, a, n), {"mix": (0.2, -0.1)}),
        (ValueError, r"mix is \(0.6, 0.4\); low must not be above high", (a, a, n),
         {"mix": (0.6, 0.4)}),
        (ValueError, r"mix is \(0.1, 0.2, 0.3\); it must be", (a, a, n), {"mix": (0.1, 0.2, 0.3)}),
        (TypeError, r"mix must be a float, not str", (a, a, n), {"mix": "0.5"}),
        (ValueError, r"mix_weight is -1", (a, a, n), {"mix_weight": -1.0}),
        (TypeError, r"seed must be an int or a 0-d int64 tensor, not float", (a, a, n),
         {"seed": 1.0}),
        (TypeError, r"seed must be int64, not torch.float32", (a, a, n), {"seed": torch.ones(())}),
        (ValueError, r"seed must have no dimension, not shape \(3,\)", (a, a, n), {"seed": i}),
        (ValueError, r"form is 'published'; it must be one of", (a, a, n), {"form": "published"}),
        (ValueError, r"reduction is 'avg'", (a, a, n), {"reduction": "avg"}),
    ]  # fmt: skip
    for kind, message, arguments, options in cases:
        with pytest.raises(kind, match=message):
            hard_negative_info_nce(*arguments, **options)
    with pytest.raises(TypeError, match="focal_scale is None"):
        focal_info_nce(a, a, n, focal_scale=None)  # type: ignore[arg-type]


def test_a_dtensor_is_refused_in_one_line() -> None:
    class DTensor(Tensor):
        pass

    with pytest.raises(TypeError, match="negatives is a DTensor") as caught:
        info_nce(torch.randn(3, 4), torch.randn(3, 4), torch.randn(6, 4).as_subclass(DTensor))
    assert "\n" not in str(caught.value)


# ---- the module forms ----------------------------------------------------------------------------


def test_the_modules_are_the_functions() -> None:
    tensors, options = problem(5, 6, 3, 4)
    a, p, n, e = tensors
    ids = {name: options[name] for name in ("anchor_ids", "negative_ids")}
    nn = seqrec_kernels.nn
    fixed: dict[str, Any] = {"temperature": 0.5, "reduction": "sum"}
    focal = {"focal_scale": 3.0, "margin": 0.1}
    hard = {"mix": (0.2, 0.6), "mix_weight": 0.5, "form": "paper"}
    cases: list[tuple[torch.nn.Module, Any, dict[str, Any], dict[str, Any]]] = [
        (nn.InfoNCE(**fixed), info_nce, fixed, {}),
        (nn.FocalInfoNCE(**fixed, **focal), focal_info_nce, {**fixed, **focal}, {}),
        (
            nn.HardNegativeInfoNCE(**fixed, **focal, **hard),
            hard_negative_info_nce, {**fixed, **focal, **hard}, {"seed": 9},
        ),
    ]  # fmt: skip
    for module, function, numbers, more in cases:
        ours = module(a, p, n, noise=e, **ids, **more)
        assert torch.equal(ours, function(a, p, n, noise=e, **ids, **numbers, **more))
        assert "temperature=0.5" in repr(module)
        assert not list(module.parameters())
    with pytest.raises(ValueError, match="mix is 2"):
        nn.HardNegativeInfoNCE(mix=2.0)
    with pytest.raises(ValueError, match="no focal_scale"):
        nn.HardNegativeInfoNCE(margin=0.2)
