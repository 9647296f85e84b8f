"""The contrastive losses against explicit mixed vectors in float64, and against golden values."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from contrast_calls import LOSSES, REDUCTIONS, agrees, gradients, problem, upstream_of
from torch import Tensor

from seqrec_kernels import (
    backend,
    focal_info_nce,
    hard_negative_info_nce,
    info_nce,
)

# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "no ids"])
@pytest.mark.parametrize("noise", [None, 5], ids=["no noise", "noise"])
def test_agrees_with_float64_in_tiny_tiles(
    tiny_tiles: None, noise: int | None, ids: bool, loss: str, reduction: str
) -> None:
    tensors, options = problem(7, 9, noise, 5, ids=ids, size=2.0)
    agrees(tensors, {**options, **LOSSES[loss], "reduction": reduction})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, None, 1), (1, 1, 1, 8), (2, 1, 3, 50), (3, 17, 2, 123), (8, 7, None, 64),
        (9, 8, 15, 33), (64, 63, 65, 16),
    ],
    ids=str,
)  # fmt: skip
def test_agrees_with_float64_in_odd_shapes(
    tiny_tiles: None, shape: tuple[int, int, int | None, int], loss: str
) -> None:
    tensors, options = problem(*shape)
    agrees(tensors, {**options, **LOSSES[loss]})


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_agrees_with_float64_in_real_tiles(loss: str, reduction: str) -> None:
    if "drawn" in loss:
        tensors, options = problem(33, 40, 9, 16, size=4.0)  # the oracle draws in Python
    else:
        tensors, options = problem(257, 130, 65, 33, size=4.0)
    agrees(tensors, {**options, **LOSSES[loss], "reduction": reduction})


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.5, 0.999, 1.0, (0.0, 1.0), (0.5, 0.5), (0.4, 0.6)])
@pytest.mark.parametrize("form", ["official", "paper"])
def test_every_mix_ratio(tiny_tiles: None, form: str, mix: float | tuple[float, float]) -> None:
    tensors, options = problem(6, 8, 2, 4)
    agrees(tensors, {**options, **LOSSES["official"], "mix": mix, "form": form})


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "shape", [(0, 4, 3, 5), (0, 0, None, 5), (3, 0, None, 5), (3, 0, 2, 5), (3, 4, 0, 5)], ids=str
)
def test_empty_sides(name: str, reduction: str, shape: tuple[int, int, int | None, int]) -> None:
    """No rows: 0. No negatives: noise alone. Nothing at all: 0, with zero gradients."""
    tensors, options = problem(*shape)
    options |= {**LOSSES["official"], "reduction": reduction}
    upstream = upstream_of(tensors, options)
    with backend(name):
        ours = gradients(hard_negative_info_nce, tensors, options, upstream)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    for our, true in zip(ours, exact, strict=True):
        assert our.dtype == torch.float32 and our.shape == true.shape
        torch.testing.assert_close(our.double(), true, rtol=1e-5, atol=1e-6)
    rows, count, noise, _ = shape
    if rows == 0 or (count == 0 and not noise):
        assert not any(t.any() for t in ours)


def test_the_three_losses_are_one() -> None:
    tensors, options = problem(6, 8, 3, 4)
    a, p, n, e = tensors
    options |= {"noise": e, "reduction": "none"}
    whole = hard_negative_info_nce(a, p, n, mix_weight=0.0, **options)
    assert torch.equal(info_nce(a, p, n, **options), whole)
    whole = hard_negative_info_nce(a, p, n, mix_weight=0.0, focal_scale=2.0, margin=0.1, **options)
    assert torch.equal(focal_info_nce(a, p, n, focal_scale=2.0, margin=0.1, **options), whole)


def test_is_cross_entropy_where_the_positive_is_among_the_negatives() -> None:
    """With r == k left out and the pairs themselves as positives, rows are softmax rows."""
    z = torch.randn(20, 8)
    places = torch.arange(20)
    loss = info_nce(z, z, z, anchor_ids=places, negative_ids=places, temperature=2.0)
    theirs = torch.nn.functional.cross_entropy(z @ z.T / 2.0, places)
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_tensor_as_anchors_and_negatives(tiny_tiles: None, loss: str) -> None:
    """Its gradients add, and without ids the pair r == k is kept."""
    tensors, options = problem(7, 7, 2, 5)
    tensors[2] = tensors[0]
    for name in ("ids", "no ids"):
        if name == "no ids":
            del options["anchor_ids"], options["negative_ids"]
        agrees(tensors, {**options, **LOSSES[loss]})
        _, da, _, dn, _ = gradients(
            hard_negative_info_nce, tensors, {**options, **LOSSES[loss]}, torch.ones(())
        )
        z, p, e = oracles.leaves(tensors[0], tensors[1], tensors[3])
        value = hard_negative_info_nce(z, p, z, noise=e, **options, **LOSSES[loss])
        (found,) = torch.autograd.grad(value, z)
        torch.testing.assert_close(found, da + dn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", ["official", "paper"])
def test_narrow_inputs_are_summed_in_float32(
    tiny_tiles: None, loss: str, reduction: str, dtype: torch.dtype
) -> None:
    tensors, options = problem(9, 11, 4, 24)
    tensors = [None if t is None else t.to(dtype) for t in tensors]
    options |= {**LOSSES[loss], "reduction": reduction}
    upstream = upstream_of(tensors, options)
    ours = gradients(hard_negative_info_nce, tensors, options, upstream)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    assert [t.dtype for t in ours] == [torch.float32] + 4 * [dtype]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    # rounded once: at most half a unit in the last place from the exact gradient, plus float32's
    half = torch.finfo(dtype).eps / 2
    for our, true in zip(ours[1:], exact[1:], strict=True):
        assert ((our.double() - true).abs() <= half * 1.001 * true.abs() + 3e-6).all()


# ---- golden values -------------------------------------------------------------------------------
# made once in float64 by explicit vectors, outside this repository; lam .4, f 8, margin .2, mu .1

H1 = [[1, 2, 0, -1], [0.5, -1, 1.5, 2], [2, 1, -1, 0.5]]
H2 = [[0.5, 1.5, 0.5, -1.5], [1, -0.5, 1, 1.5], [1.5, 0.5, -2, 0]]
ETA = [[0.3, -0.2, 0.1, 0.4], [-1, 0.5, 0.8, -0.6]]
ENHANCED: dict[str, Any] = {"focal_scale": 8.0, "margin": 0.2, "mix": 0.4, "mix_weight": 0.1}


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


def views(dtype: torch.dtype, second: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Both views of a batch under each other, and the other view of every row."""
    z = torch.tensor([*H1, *second], dtype=dtype, requires_grad=True)
    return z, z.roll(3, 0)


def test_golden_enhanced_loss(dtype: torch.dtype) -> None:
    z, other = views(dtype, H2)
    ids = torch.tensor([1, 2, 1, 1, 2, 1])
    options = {"noise": torch.tensor(ETA, dtype=dtype), "anchor_ids": ids, "negative_ids": ids}
    rows = hard_negative_info_nce(z, other, z, reduction="none", **options, **ENHANCED)
    expected = [0.298303, 0.331565, 0.227084, 0.328589, 0.281844, 0.187881]
    torch.testing.assert_close(rows.double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)
    mean = hard_negative_info_nce(z, other, z, **options, **ENHANCED)
    assert float(mean.detach()) == pytest.approx(
        0.2758777855, abs=1e-7 if dtype == torch.float32 else 1e-10
    )
    (found,) = torch.autograd.grad(mean, z)
    expected_rows = torch.tensor(
        [[-0.054121, -0.114508, -0.063737, 0.100404], [-0.124847, -0.061751, 0.053074, -0.037964]]
    )
    torch.testing.assert_close(found[[0, 5]].float(), expected_rows, rtol=0, atol=1e-6)


def test_golden_plain_loss(dtype: torch.dtype) -> None:
    z, other = views(dtype, H2)
    ids = torch.tensor([1, 2, 1, 1, 2, 1])
    rows = info_nce(z, other, z, anchor_ids=ids, negative_ids=ids, reduction="none")
    expected = [0.001705, 0.002982, 0.016604, 0.001115, 0.017506, 0.002189]
    torch.testing.assert_close(rows.double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)
    assert float(rows.mean()) == pytest.approx(0.0070169627, abs=1e-8)


def test_golden_loss_against_centroids(dtype: torch.dtype) -> None:
    centroids = [[0.6, 0.8, 0, 0], [0, 0, 0.6, 0.8], [0.6, 0.8, 0, 0]]
    z, other = views(dtype, centroids)
    ids = torch.tensor([4, 7, 4, 4, 7, 4])
    noise = torch.tensor(ETA, dtype=dtype)
    options = {"noise": noise, "anchor_ids": ids, "negative_ids": ids, "reduction": "none"}
    rows = hard_negative_info_nce(z, other, z, **options, **ENHANCED)
    expected = [1.385555, 1.628212, 1.459730, 1.197616, 1.399231, 1.268722]
    torch.testing.assert_close(rows.double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)
    assert float(rows.mean()) == pytest.approx(1.3898442782, abs=1e-6)
    (found,) = torch.autograd.grad(rows.mean(), z)
    row = torch.tensor([-0.105363, -0.048686, -0.058220, -0.094783])
    torch.testing.assert_close(found[0].float(), row, rtol=0, atol=1e-6)


def test_golden_mixed_similarities(dtype: torch.dtype) -> None:
    """One pair at a time: loss = log(1 + (e^s + mu e^u) / e^s) with the positive the negative."""
    z = torch.tensor([*H1, *H2], dtype=dtype)
    pairs = {(0, 0): 6, (0, 1): 1.123441, (0, 3): 5.302965, (0, 4): 1.908114, (1, 3): 0.705131,
             (2, 5): 6.052017}  # fmt: skip
    for (i, j), u in pairs.items():
        a, n = z[i : i + 1], z[j : j + 1]
        loss = hard_negative_info_nce(a, n, n, mix=0.4, mix_weight=0.1)
        found = torch.log((loss.double().exp() - 2) / 0.1) + (a @ n.T).double()
        assert float(found) == pytest.approx(u, abs=1e-6 if dtype == torch.float64 else 3e-5)


# ---- the paper's form ----------------------------------------------------------------------------


def test_the_papers_gradients_are_those_of_a_surrogate_by_differences() -> None:
    """Central differences of the loss in which the outer mixed vectors stand still."""
    torch.manual_seed(3)
    tensors, options = problem(3, 4, None, 3, ids=False)
    a, p, n = (t.double() for t in tensors[:3] if t is not None)
    focal, margin, mix, mu, t = 3.0, 0.2, 0.3, 0.5, options["temperature"]

    def mixed(a: Tensor, n: Tensor) -> Tensor:
        bracket = mix * oracles.unit(a)[:, None] + (1 - mix) * oracles.unit(n)[None]
        return oracles.length(n)[None] * oracles.unit(bracket)

    still = mixed(a, n)

    def surrogate(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        s, q = (a * p).sum(1), a @ n.T
        outer = (a[:, None] * still).sum(2)
        inner = (a[:, None] * mixed(a, n)).sum(2)
        first = s * torch.tanh(s / focal) / t
        logits = torch.cat(
            [
                first[:, None],
                (q * torch.tanh(q / focal) + margin) / t,
                outer * torch.tanh(inner / focal) / t + torch.tensor(mu).log(),
            ],
            1,
        )
        return (logits.logsumexp(1) - first).mean()

    leaves = oracles.leaves(a, p, n)
    loss = hard_negative_info_nce(
        *leaves, focal_scale=focal, margin=margin, mix=mix, mix_weight=mu, form="paper",
        temperature=t,
    )  # fmt: skip
    found = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(loss.detach(), surrogate(a, p, n))
    step = 1e-5
    for which, gradient in enumerate(found):
        for place in range(gradient.numel()):
            ends = []
            for sign in (1, -1):
                moved = [x.clone() for x in (a, p, n)]
                moved[which].view(-1)[place] += sign * step
                ends.append(float(surrogate(*moved)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient.reshape(-1)[place]) == pytest.approx(slope, abs=1e-9)


def test_without_a_focal_scale_the_forms_are_the_same() -> None:
    tensors, options = problem(6, 8, 3, 4)
    options |= LOSSES["plain mixed"]
    for name in ("blocked", "reference"):
        with backend(name):
            found = [
                gradients(
                    hard_negative_info_nce, tensors, {**options, "form": form}, torch.ones(())
                )
                for form in ("official", "paper")
            ]
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_negatives_get_nothing_from_their_mixed_negatives_in_the_official_form() -> None:
    """A mixed block so heavy that the negatives' own share vanishes leaves them no gradient."""
    tensors, options = problem(5, 6, None, 4, ids=False)
    for form, moves in (("official", False), ("paper", True)):
        settings = {**options, **LOSSES["official"], "mix_weight": 1e9, "form": form}
        _, da, _, dn = gradients(hard_negative_info_nce, tensors, settings, torch.ones(()))
        assert da.abs().max() > 1e-3
        assert (dn.abs().max() > 1e-3) == moves
