"""The triton kernels of the contrastive losses against explicit mixed vectors in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import pytest
import torch
import triton_device
from contrast_calls import LOSSES, NAMES, gradients, problem, upstream_of
from torch import Tensor
from triton_device import DEVICE

from seqrec_kernels import backend, hard_negative_info_nce, info_nce
from seqrec_kernels.ops.contrast.problem import Problem

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton
tiny_tiles = triton_device.tiny_tiles

Tensors = Sequence[Tensor | None]


def there(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def run(tensors: Tensors, options: dict[str, Any], upstream: Tensor) -> list[Tensor]:
    """The loss and all gradients by our kernels, back on the CPU."""
    options = {name: there(x) for name, x in options.items()}
    found = gradients(hard_negative_info_nce, [there(t) for t in tensors], options, there(upstream))
    return [t.detach().cpu() for t in found]


def agrees(tensors: Tensors, options: dict[str, Any]) -> None:
    """Loss and gradients are as near to float64 as dense float32 torch is, twice over."""
    upstream = upstream_of(tensors, options)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    with backend("reference"):
        plain = gradients(hard_negative_info_nce, tensors, options, upstream)
    ours = run(tensors, options, upstream)
    for name, our, true, dense in zip(("loss", *NAMES), ours, exact, plain, strict=False):
        oracles.close(our, true, dense, name)


def near(tensors: Tensors, options: dict[str, Any], tolerance: float = 1e-4) -> list[Tensor]:
    """Ours under ones, held to float64 by a share of the largest number."""
    upstream = torch.ones(upstream_of(tensors, options).shape)
    ours = run(tensors, options, upstream)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    for our, true in zip(ours, exact, strict=True):
        assert our.isfinite().all()
        size = max(float(true.detach().abs().max()), 1e-3) if true.numel() else 0.0
        torch.testing.assert_close(our.double(), true, rtol=tolerance, atol=0.1 * tolerance * size)
    return ours


# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_agrees_with_float64(tiny_tiles: None, loss: str) -> None:
    tensors, options = problem(18, 70, 33, 40, size=2.0)
    agrees(tensors, {**options, **LOSSES[loss], "reduction": "none"})


@pytest.mark.parametrize(
    ("shape", "reduction"),
    [((1, 1, None, 1), "sum"), ((2, 33, 1, 8), "mean"), ((17, 32, None, 50), "mean")],
)
@pytest.mark.parametrize("loss", ["official", "paper, drawn"])
def test_agrees_with_float64_without_ids(
    tiny_tiles: None, loss: str, shape: tuple[int, int, int | None, int], reduction: str
) -> None:
    tensors, options = problem(*shape, ids=False)
    agrees(tensors, {**options, **LOSSES[loss], "reduction": reduction})


@pytest.mark.parametrize(("loss", "width"), [("official", 50), ("paper, drawn", 200)])
def test_agrees_with_float64_in_the_tiles_it_ships_with(loss: str, width: int) -> None:
    tensors, options = problem(70, 90, 35, width, size=4.0)
    agrees(tensors, {**options, **LOSSES[loss]})


def test_golden_values() -> None:
    """Made in float64 by explicit vectors, outside this repository."""
    h1 = [[1, 2, 0, -1], [0.5, -1, 1.5, 2], [2, 1, -1, 0.5]]
    h2 = [[0.5, 1.5, 0.5, -1.5], [1, -0.5, 1, 1.5], [1.5, 0.5, -2, 0]]
    noise = torch.tensor([[0.3, -0.2, 0.1, 0.4], [-1, 0.5, 0.8, -0.6]], device=DEVICE)
    z = torch.tensor([*h1, *h2], device=DEVICE, requires_grad=True)
    ids = torch.tensor([1, 2, 1, 1, 2, 1], device=DEVICE)
    options = {"anchor_ids": ids, "negative_ids": ids}
    loss = hard_negative_info_nce(
        z, z.roll(3, 0), z, noise=noise, focal_scale=8.0, margin=0.2, mix=0.4, mix_weight=0.1,
        **options,
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(0.2758777855, abs=1e-6)
    (found,) = torch.autograd.grad(loss, z)
    expected = [[-0.054121, -0.114508, -0.063737, 0.100404],
                [-0.124847, -0.061751, 0.053074, -0.037964]]  # fmt: skip
    torch.testing.assert_close(found[[0, 5]].cpu(), torch.tensor(expected), rtol=0, atol=1e-5)
    plain = info_nce(z.detach(), z.detach().roll(3, 0), z.detach(), **options)
    assert float(plain) == pytest.approx(0.0070169627, abs=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (0, 0, None, 5), (3, 0, None, 5), (3, 0, 2, 5),
                                   (3, 4, 0, 5)], ids=str)  # fmt: skip
def test_empty_sides(shape: tuple[int, int, int | None, int], reduction: str) -> None:
    tensors, options = problem(*shape)
    ours = near(tensors, {**options, **LOSSES["paper, drawn"], "reduction": reduction})
    assert all(t.dtype == torch.float32 for t in ours)
    rows, count, noise, _ = shape
    if rows == 0 or (count == 0 and not noise):
        assert not any(t.any() for t in ours)


@pytest.mark.parametrize("loss", ["official", "paper"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_round_each_weight_once(
    tiny_tiles: None, dtype: torch.dtype, loss: str
) -> None:
    tensors, options = problem(19, 70, 20, 24)
    tensors = [None if t is None else t.to(dtype) for t in tensors]
    options |= {**LOSSES[loss], "reduction": "none"}
    upstream = upstream_of(tensors, options)
    ours = run(tensors, options, upstream)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    assert [t.dtype for t in ours] == [torch.float32] + 4 * [dtype]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    # half a unit in the last place for each weight and for the sum, of about the gradient's size;
    # the interpreter cuts bfloat16 off instead of rounding it
    unit = torch.finfo(dtype).eps * (
        1 if triton_device.INTERPRETED and dtype == torch.bfloat16 else 0.5
    )
    for name, our, true in zip(NAMES, ours[1:], exact[1:], strict=True):
        size = float(true.abs().max())
        assert float((our.double() - true).abs().max()) <= 2 * unit * size + 3e-6, name


def test_float16_keeps_what_a_weight_below_its_range_adds() -> None:
    a, n = 1 + torch.rand(8, 16), -0.02 * torch.rand(64, 16)
    tensors: Tensors = [a.half(), a.half(), n.half(), None]  # weights about e^-37 of the positive's
    tensors[1].mul_(0.45)  # type: ignore[union-attr]  # ... and now 1e-7; float16 ends at 6e-8
    options = {"mix_weight": 0.0, "reduction": "none"}
    upstream = 2.0**20 * torch.linspace(1, 3, 8)  # what a gradient scaler does
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)[3]
    found = run(tensors, options, upstream)[3]
    assert float(exact.max()) < 6e4 and float(exact.min()) > 0
    assert ((found - exact).abs() <= 0.002 * exact.abs()).all()


# ---- numbers at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["info_nce", "official", "paper, drawn"])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e4])
def test_extreme_norms_stay_finite(tiny_tiles: None, size: float, loss: str) -> None:
    tensors, options = problem(6, 7, 3, 4)
    for t in tensors:
        assert t is not None
        t[1:3] = torch.nn.functional.normalize(t[1:3], dim=1) * size
    options |= {**LOSSES[loss], "reduction": "none"}
    if size < 1e4 or triton_device.INTERPRETED:
        near(tensors, options)
    else:  # logits of 1e8 are known to 8, and a product the other way round is rounded otherwise
        assert all(t.isfinite().all() for t in run(tensors, options, torch.ones(6)))


@pytest.mark.parametrize("loss", ["plain mixed", "official", "paper"])
@pytest.mark.parametrize("mix", [0.5, 0.4, 0.0, 1.0, (0.49, 0.51)])
def test_equal_and_opposite_pairs(loss: str, mix: float | tuple[float, float]) -> None:
    anchors = torch.randn(5, 6)
    negatives = torch.cat([-3 * anchors, anchors, -anchors[:2] / 7, torch.zeros(1, 6)])
    options = {**LOSSES[loss], "mix": mix, "seed": 3, "reduction": "none"}
    # a drawn ratio beside 1/2 leaves a difference of nearly opposite vectors
    tolerance = 2e-2 if isinstance(mix, tuple) else 1e-4
    near([anchors, torch.randn(5, 6), negatives, None], options, tolerance)


def test_an_anchor_of_zeros_meets_the_negatives_themselves() -> None:
    a, n = torch.zeros(1, 3), torch.tensor([[1.0, -2.0, 0.5]])
    options = {"focal_scale": 4.0, "margin": 0.5, "mix": 0.3, "mix_weight": 0.6}
    loss, da, *_ = run([a, n, n, None], options, torch.ones(()))
    torch.testing.assert_close(float(loss), math.log(2.6))
    torch.testing.assert_close(da, 0.5 * n * 1.6 / 2.6)


@pytest.mark.parametrize("loss", ["info_nce", "official", "paper, drawn"])
@pytest.mark.parametrize("noise", [None, 3])
def test_pairs_left_out_weigh_nothing_however_large(
    tiny_tiles: None, noise: int | None, loss: str
) -> None:
    """Every pair of some rows, then of all: what is left is the noise, or a loss of 0."""
    tensors, options = problem(7, 40, noise, 4)
    options |= {**LOSSES[loss], "reduction": "none"}
    assert tensors[0] is not None and tensors[2] is not None
    tensors[2][5] = 1e5 * tensors[0][6]
    options["negative_ids"] = torch.full((40,), 9)
    for kept in (3, 0):
        options["anchor_ids"] = torch.where(torch.arange(7) < kept, 1, 9)
        if kept:
            options["negative_ids"][5] = 1  # left out where the others are kept ...
            tensors[2][5] = 1e5 * tensors[0][0]
        else:
            options["negative_ids"][5] = 9
        ours = near(tensors, options)
        if noise is None and not kept:
            assert not any(t.any() for t in ours)


def test_a_nan_anchor_spoils_its_own_row_only(tiny_tiles: None) -> None:
    tensors, options = problem(20, 40, 5, 6)
    assert tensors[0] is not None
    tensors[0][3] = torch.nan
    options |= {**LOSSES["official"], "reduction": "none"}
    loss, da, *_ = run(tensors, options, torch.ones(20))
    bad = torch.arange(20) == 3
    assert loss[bad].isnan().all() and loss[~bad].isfinite().all()
    assert da[bad].isnan().all() and da[~bad].isfinite().all()


def test_small_losses_keep_their_digits() -> None:
    a = torch.tensor([[6.0, 0.0]], device=DEVICE)
    loss = info_nce(a, a, -a / 2, reduction="none")
    assert float(loss) == pytest.approx(math.log1p(math.exp(-54)), rel=1e-4)


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63 - 1, 2**24 + 1])
def test_ids_are_compared_in_all_their_bits(value: int) -> None:
    a, n = torch.randn(3, 5, device=DEVICE), torch.randn(4, 5, device=DEVICE)
    other = value - 1 if value > 0 else value + 1
    found = []
    for x, y in ((value, other), (5, 6)):
        ids = {"anchor_ids": torch.tensor([x, y, x]), "negative_ids": torch.tensor([x, x, y, y])}
        ids = {name: there(t) for name, t in ids.items()}
        found.append(info_nce(a, a, n, reduction="none", **ids))
    assert torch.equal(*found)
    assert not torch.equal(found[0], info_nce(a, a, n, reduction="none"))


def test_all_64_bits_of_a_seed_count_also_as_a_tensor() -> None:
    tensors, options = problem(5, 6, 2, 4)
    options |= {"mix": (0.1, 0.9), "mix_weight": 1.0}

    def loss(seed: Any) -> float:
        return float(run(tensors, {**options, "seed": seed}, torch.ones(()))[0])

    assert loss(7) == loss(torch.tensor(7)) != loss(8)
    assert loss(-1) == loss(2**64 - 1) == loss(torch.tensor(-1)) != loss(2**32 - 1)


# ---- promises ------------------------------------------------------------------------------------


def bits(
    tensors: Tensors, options: dict[str, Any], upstream: Tensor, wanted: Sequence[str] = NAMES
) -> dict[str, Tensor]:
    """The gradients wanted, computed twice from one graph, which must give the same bits."""
    leaves = {name: there(t).detach() for name, t in zip(NAMES, tensors, strict=True)}
    inputs = [leaves[name].requires_grad_() for name in wanted]
    options = {name: there(x) for name, x in options.items()}
    loss = hard_negative_info_nce(**leaves, **options)
    first = torch.autograd.grad(loss, inputs, there(upstream), retain_graph=True)
    kept = [t.clone() for t in first]
    first[0].fill_(torch.nan)
    second = torch.autograd.grad(loss, inputs, there(upstream))
    assert all(map(torch.equal, kept, second))
    return dict(zip(wanted, kept, strict=True))


@pytest.mark.parametrize("loss", ["official, drawn", "paper"])
def test_the_same_bits_every_time_and_for_only_the_gradients_wanted(
    tiny_tiles: None, loss: str
) -> None:
    tensors, options = problem(18, 40, 5, 40)
    options |= {**LOSSES[loss], "reduction": "none"}
    upstream = upstream_of(tensors, options)
    every = bits(tensors, options, upstream)
    for wanted in (["anchors"], ["negatives"], ["positives", "noise"]):
        some = bits(tensors, options, upstream, wanted)
        assert all(torch.equal(t, every[name]) for name, t in some.items())


def test_strided_expanded_and_shared_inputs(tiny_tiles: None) -> None:
    m, k, d = 18, 40, 10
    z = torch.randn(k, d)
    cases: dict[str, Tensors] = {
        "slices": (torch.randn(m, 2 * d)[:, ::2], torch.randn(m, 2 * d)[:, :d],
                   torch.randn(k, 2 * d)[:, d:], torch.randn(6, d)[3:]),
        "transposed": tuple(torch.randn(d, n).T for n in (m, m, k, 3)),
        "one row for all": tuple(torch.randn(1, d).expand(n, d) for n in (m, m, k, 3)),
        "one tensor": (z, z.roll(1, 0), z, z[:3]),
    }  # fmt: skip
    for what, tensors in cases.items():
        rows = tensors[0].shape[0]  # type: ignore[union-attr]
        options = {
            **LOSSES["paper"],
            "anchor_ids": torch.randint(4, (2, rows))[1],
            "negative_ids": torch.randint(4, (k, 2))[:, 1],
        }
        before = [t.clone() for t in tensors if t is not None]
        on = {name: there(t) for name, t in options.items()}
        a, p, n, e = (there(t) for t in tensors)
        loss = hard_negative_info_nce(a, p, n, noise=e, **on)
        assert all(map(torch.equal, [t for t in tensors if t is not None], before)), what
        exact = oracles.contrast(*before[:3], noise=before[3], **options)
        torch.testing.assert_close(loss.cpu(), exact.to(loss.dtype), rtol=1e-5, atol=1e-5, msg=what)


@pytest.mark.parametrize("loss", ["official, drawn", "paper"])
def test_compiled_gives_the_bits_of_eager(tiny_tiles: None, loss: str) -> None:
    tensors, options = problem(18, 40, 5, 8)
    options |= LOSSES[loss]
    on = {name: there(x) for name, x in options.items()}
    moved = [there(t) for t in tensors]
    compiled: Callable[..., Tensor] = torch.compile(
        hard_negative_info_nce, fullgraph=True, backend="aot_eager"
    )
    eager = gradients(hard_negative_info_nce, moved, on, torch.ones((), device=DEVICE))
    traced = gradients(compiled, moved, on, torch.ones((), device=DEVICE))
    assert all(map(torch.equal, eager, traced))


def described(rows: int, count: int, noise: int, width: int) -> Problem:
    a, p, n, e = (torch.randn(k, width, device=DEVICE) for k in (rows, rows, count, noise))
    ids = [torch.arange(k, device=DEVICE) % 5 for k in (rows, count)]
    seed = torch.tensor(3, device=DEVICE)
    return Problem(a, p, n, e, *ids, seed, 0.5, 3.0, 0.2, 0.1, 0.9, 0.3, "paper", "mean")


def test_opcheck(tiny_tiles: None) -> None:
    call = described(5, 40, 3, 4)
    leaves = [t.requires_grad_() for t in call[:4] if isinstance(t, Tensor)]
    operator = torch.ops.seqrec_kernels.contrast.default
    torch.library.opcheck(operator, (*leaves, *call[4:], [True] * 4, "triton"))


def test_no_tensor_of_the_pairs() -> None:
    from seqrec_kernels.ops.contrast import triton_kernels

    rows, count, width = 150, 400, 2
    call = described(rows, count, 40, width)
    with oracles.Watch() as watch, torch.no_grad():
        loss, saved = triton_kernels.forward(call, [True] * 4)
        triton_kernels.backward(torch.ones_like(loss), call, saved, [True] * 4)
    shapes = triton_kernels.saved_shapes(call, [True] * 4)
    assert [tuple(t.shape) for t in saved] == shapes == [(rows,), (rows,), (rows,), (count,)]
    # the largest is a workspace of gradient parts, a few times the inputs
    assert watch.largest <= 4 * 8 * (rows + count) * width < 4 * rows * count / 2


def test_a_loss_follows_the_precision_asked_of_torch() -> None:
    from seqrec_kernels.ops.contrast.triton_pairs import Operands

    call = described(3, 4, 2, 4)
    before = torch.get_float32_matmul_precision()
    try:
        for asked, taken in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(asked)
            assert Operands.of(call).precision == taken
    finally:
        torch.set_float32_matmul_precision(before)
