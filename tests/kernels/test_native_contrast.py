"""The contrastive losses in C++, in every instruction set, both plans, against float64."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import oracles
import pytest
import torch
from native_versions import threads, version  # noqa: F401 (fixtures)
from torch import Tensor

from seqrec_kernels import backend, hard_negative_info_nce
from seqrec_kernels.ops.contrast import native
from seqrec_kernels.ops.contrast.problem import Problem

NAMES = ("loss", "anchors", "positives", "negatives", "noise")

# all anchors at once, a few at a time or (300 negatives) block by block, tile by tile
WORKSPACES = {"whole": 2**24, "blocks": 2**16, "recompute": 2**10}

# the three losses, with the mixed block in its variants
VARIANTS: dict[str, dict[str, Any]] = {
    "info": {"mix_weight": 0.0},
    "focal": {"mix_weight": 0.0, "focal_scale": 2.0, "margin": 0.3},
    "plain mixed": {"mix_weight": 0.5},
    "official": {"focal_scale": 8.0, "margin": 0.2},
    "drawn": {"focal_scale": 8.0, "margin": 0.2, "mix": (0.1, 0.9), "seed": -(2**40) + 5},
    "paper": {"focal_scale": 8.0, "margin": 0.2, "form": "paper"},
    "paper drawn": {"focal_scale": 3.0, "margin": 0.2, "form": "paper", "mix": (0.0, 1.0)},
    "paper focal": {"focal_scale": 3.0, "margin": 0.2, "form": "paper", "mix_weight": 0.0},
}


@pytest.fixture(autouse=True)
def versions_of_its_own(version: str) -> None:  # noqa: F811
    if version == "avx512_bf16":
        pytest.skip("for these losses the same kernels as avx512")


@pytest.fixture(params=WORKSPACES)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native, "WORKSPACE", WORKSPACES[request.param])
    return str(request.param)


def matrices(rows: int, negatives: int, noise: int, width: int) -> list[Tensor]:
    """Anchors, positives, negatives and noise whose similarities spread about as 0 +- 4."""
    size = 2 / width**0.25
    return [torch.randn(n, width) * size for n in (rows, rows, negatives, noise)]


def ids_of(rows: int, negatives: int, classes: int = 9) -> dict[str, Tensor]:
    # far apart and equal in their low 32 bits
    made = [torch.randint(classes, (n,)) * 2**32 - 7 for n in (rows, negatives)]
    return {"anchor_ids": made[0], "negative_ids": made[1]}


def run(
    inputs: list[Tensor],
    options: dict[str, Any],
    upstream: Tensor,
    wanted: tuple[bool, ...] = (True,) * 4,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The loss and the gradients wanted."""
    leaves = [
        t.detach().to(dtype or t.dtype).requires_grad_(want)
        for t, want in zip(inputs, wanted, strict=True)
    ]
    loss = hard_negative_info_nce(*leaves[:3], noise=leaves[3], **options)
    sources = [t for t in leaves if t.requires_grad]
    return [loss, *torch.autograd.grad(loss, sources, upstream.to(loss.dtype))]


def agrees(inputs: list[Tensor], options: dict[str, Any]) -> None:
    """Loss and gradients against float64, no worse than twice plain torch."""
    none = options.get("reduction") == "none"
    upstream = torch.randn(inputs[0].shape[:1] if none else ())
    exact = run(inputs, options, upstream, dtype=torch.float64)  # float64 is the reference
    with backend("reference"):
        plain = run(inputs, options, upstream)
    ours = run(inputs, options, upstream)
    for name, our, true, dense in zip(NAMES, ours, exact, plain, strict=True):
        assert our.isfinite().all(), name
        oracles.close(our, true, dense, name, floor=4e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_float64_in_every_variant(variant: str, reduction: str, plan: str) -> None:
    options = {"temperature": 0.7, **VARIANTS[variant], "reduction": reduction}
    agrees(matrices(130, 300, 123, 50), {**options, **ids_of(130, 300)})


@pytest.mark.parametrize("variant", ["info", "drawn", "paper"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 0, 1), (1, 2, 1, 8), (63, 95, 3, 16), (64, 96, 96, 3), (65, 97, 31, 123), (2, 0, 5, 4)],
)
def test_agrees_with_float64_on_odd_shapes(
    shape: tuple[int, int, int, int], variant: str, plan: str
) -> None:
    agrees(matrices(*shape), VARIANTS[variant])
    agrees(matrices(*shape), {**VARIANTS[variant], **ids_of(*shape[:2], classes=3)})


def test_golden_vectors_of_the_specification(plan: str) -> None:
    h1 = torch.tensor([[1, 2, 0, -1], [0.5, -1, 1.5, 2], [2, 1, -1, 0.5]])
    h2 = torch.tensor([[0.5, 1.5, 0.5, -1.5], [1, -0.5, 1, 1.5], [1.5, 0.5, -2, 0]])
    z = torch.cat([h1, h2]).requires_grad_()
    noise = torch.tensor([[0.3, -0.2, 0.1, 0.4], [-1, 0.5, 0.8, -0.6]])
    labels = torch.tensor([1, 2, 1] * 2)
    given = {"anchor_ids": labels, "negative_ids": labels}
    focal = {"focal_scale": 8.0, "margin": 0.2, "mix": 0.4, "mix_weight": 0.1, "noise": noise}
    rows = hard_negative_info_nce(z, z.roll(3, 0), z, reduction="none", **given, **focal)
    expected = [0.298303, 0.331565, 0.227084, 0.328589, 0.281844, 0.187881]
    torch.testing.assert_close(rows, torch.tensor(expected), rtol=0, atol=1e-6)
    loss = hard_negative_info_nce(z, z.roll(3, 0), z, **given, **focal)
    assert float(loss) == pytest.approx(0.2758777855, abs=1e-7)
    (dz,) = torch.autograd.grad(loss, z)
    expected = [[-0.054121, -0.114508, -0.063737, 0.100404]]
    torch.testing.assert_close(dz[:1], torch.tensor(expected), rtol=0, atol=1e-6)
    expected = [[-0.124847, -0.061751, 0.053074, -0.037964]]
    torch.testing.assert_close(dz[5:], torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32_and_rounded_once(
    dtype: torch.dtype, plan: str
) -> None:
    inputs = [t.to(dtype) for t in matrices(66, 300, 50, 50)]
    options = {**VARIANTS["paper"], **ids_of(66, 300), "reduction": "sum"}
    upstream = torch.rand(())
    ours = run(inputs, options, upstream)
    exact = run(inputs, options, upstream, dtype=torch.float64)
    assert [t.dtype for t in ours] == [torch.float32] + [dtype] * 4
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    half, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    for our, true in zip(ours[1:], exact[1:], strict=True):
        assert ((our.double() - true).abs() <= half * 1.01 * true.abs() + 1e-5 + tiny).all()


def test_neither_threads_nor_repetition_change_a_bit(plan: str, threads: int) -> None:  # noqa: F811
    inputs = matrices(150, 300, 200, 20)
    for variant, reduction in (("drawn", "mean"), ("paper", "none")):
        options = {**VARIANTS[variant], **ids_of(150, 300), "reduction": reduction}
        upstream = torch.randn(150 if reduction == "none" else ())
        ours = run(inputs, options, upstream)
        again = run(inputs, options, upstream)
        torch.set_num_threads(1)
        alone = run(inputs, options, upstream)
        torch.set_num_threads(threads)
        for a, b, c in zip(ours, again, alone, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=4))[:-1])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(
    wanted: tuple[bool, ...], plan: str
) -> None:
    inputs, options = matrices(70, 200, 100, 20), {**VARIANTS["paper"], **ids_of(70, 200)}
    every = run(inputs, options, torch.ones(()))
    found = run(inputs, options, torch.ones(()), wanted)
    expected = [every[0], *itertools.compress(every[1:], wanted)]
    for ours, full in zip(found, expected, strict=True):
        # which plan runs may depend on what is wanted
        torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-8)
        if plan == "whole":
            assert torch.equal(ours, full)


def test_one_tensor_in_several_roles_adds_its_gradients(plan: str) -> None:
    z, noise = matrices(96, 0, 40, 12)[::3]
    ids = torch.arange(48).repeat(2)
    options = {**VARIANTS["official"], "anchor_ids": ids, "negative_ids": ids}
    (shared,) = oracles.leaves(z)
    loss = hard_negative_info_nce(shared, shared.roll(48, 0), shared, noise=noise, **options)
    (whole,) = torch.autograd.grad(loss, shared)
    apart = run([z, z.roll(48, 0), z, noise], options, torch.ones(()))
    torch.testing.assert_close(whole, apart[1] + apart[2].roll(-48, 0) + apart[3])


def test_strided_expanded_and_unaligned_inputs_none_written(plan: str) -> None:
    options = {**VARIANTS["paper drawn"], **ids_of(40, 90)}
    options["anchor_ids"] = torch.stack([options["anchor_ids"]] * 2, 1)[:, 0]
    cases = {
        "columns": (torch.randn(40, 32)[:, ::2], torch.randn(16, 90).T),
        "expanded": (torch.randn(1, 16).expand(40, 16), torch.randn(1, 16).expand(90, 16)),
        "unaligned": (torch.randn(41, 16).view(-1)[7:647].view(40, 16), torch.randn(91, 16)[1:]),
        "overlapping": (torch.randn(55).as_strided((40, 16), (1, 1)), torch.randn(90, 16)),
    }
    for name, (a, n) in cases.items():
        given = [a, a.flip(0), n, n[5:25]]
        copies = [t.clone() for t in given]
        ours = run(given, options, torch.ones(()))
        straight = run(copies, options, torch.ones(()))
        assert all(torch.equal(t, c) for t, c in zip(given, copies, strict=True))
        assert all(torch.equal(t, c) for t, c in zip(ours, straight, strict=True)), name


@pytest.mark.parametrize("far", ["rows", "columns"])
def test_offsets_beyond_two_to_the_31(far: str) -> None:
    # 2**31 and more elements of address space, of which a few pages are ever touched
    storage = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    n = storage.as_strided((3, 3), (2**30, 1) if far == "rows" else (1, 2**30))
    near = [t.bfloat16() for t in matrices(5, 3, 2, 3)]
    n.copy_(near[2])
    ours = run([near[0], near[1], n, near[3]], VARIANTS["official"], torch.ones(()))
    expected = run(near, VARIANTS["official"], torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("variant", ["plain mixed", "official", "paper"])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 30.0, 1e12])
def test_extreme_similarities_stay_finite(size: float, variant: str, plan: str) -> None:
    inputs = [t * size for t in matrices(66, 200, 30, 4)]
    options = {**VARIANTS[variant], **ids_of(66, 200)}
    found = run(inputs, options, torch.ones(()))
    exact = run(inputs, options, torch.ones(()), dtype=torch.float64)
    for name, our, true in zip(NAMES, found, exact, strict=True):
        assert our.isfinite().all(), name
        # products of 1e-30 with itself are 0 in float32, e^-80 is here
        atol = max(1e-3 * float(true.abs().max()), 1e-30)
        torch.testing.assert_close(our.double(), true, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("form", ["official", "paper"])
@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0, (0.5, 0.5 + 1e-6)])
def test_pairs_without_a_direction(mix: float | tuple[float, float], form: str, plan: str) -> None:
    """Zeros, equal and opposite vectors: u = 0 with no gradient, where D vanishes."""
    a, p, n, e = matrices(10, 20, 3, 8)
    a[0] = 0
    n[0] = 0
    n[1], n[2], n[3] = a[1], -a[1], -3 * a[1]
    n[4:8], p[5] = 0, 0
    agrees([a, p, n, e], {"focal_scale": 4.0, "form": form, "mix": mix, "mix_weight": 0.7})


def test_rising_logits_raise_the_shift_in_every_tile(plan: str) -> None:
    # each tile's largest logit is far above everything before it: all sums are scaled every time
    rising = torch.linspace(-300, 300, 700)[:, None]
    inputs = [torch.ones(65, 1), -torch.ones(65, 1), rising, rising[:99] + 500]
    agrees(inputs, VARIANTS["plain mixed"])


def test_places_past_the_last_anchor_add_nothing(plan: str) -> None:
    # e^89 is no float32; a logit of anchors that are not there is offset by as much as any other
    options = {"focal_scale": 8.0, "margin": 89.0, "form": "paper", "reduction": "none"}
    agrees(matrices(65, 100, 20, 8), options)


def test_small_losses_and_their_gradients_keep_their_digits(plan: str) -> None:
    # positives so far above everything that 1 + loss is 1 in float32
    a = torch.eye(8) * 5
    options: dict[str, Any] = {**ids_of(8, 8), "mix_weight": 0.0, "reduction": "sum"}
    options = {**options, "anchor_ids": torch.arange(8), "negative_ids": torch.arange(8)}
    ours = run([a, a, a, a[:1] * 0.1], options, torch.ones(()))
    exact = run([a, a, a, a[:1] * 0.1], options, torch.ones(()), dtype=torch.float64)
    assert 0 < float(ours[0]) < 1e-8
    for our, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(our.double(), true, rtol=1e-5, atol=0)


def test_a_row_that_is_nan_spoils_no_other_row(plan: str) -> None:
    a, p, n, e = matrices(66, 100, 20, 8)
    a[3, 2] = torch.nan
    rows = hard_negative_info_nce(a, p, n, noise=e, reduction="none", **VARIANTS["official"])
    assert rows[3].isnan() and rows.isnan().sum() == 1
    total, d_anchors = run([a, p, n, e], VARIANTS["official"], torch.ones(()))[:2]
    assert total.isnan() and d_anchors[3].isnan().all() and d_anchors.isnan().any(1).sum() == 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_with_nothing_kept_and_no_rows_at_all(reduction: str, plan: str) -> None:
    for rows, negatives in ((7, 30), (7, 0), (0, 30), (0, 0)):
        inputs = matrices(rows, negatives, 0, 5)
        same = ids_of(rows, negatives, classes=1)
        options = {**VARIANTS["paper"], **same, "reduction": reduction}
        upstream = torch.ones(rows if reduction == "none" else ())
        loss, *found = run(inputs, options, upstream)
        assert loss.shape == upstream.shape and float(loss.detach().abs().sum()) == 0
        for t, gradient in zip(inputs, found, strict=True):
            assert torch.equal(gradient, torch.zeros_like(t))


def test_the_graph_may_be_walked_twice_and_never_differentiated(plan: str) -> None:
    a, p, n, _ = oracles.leaves(*matrices(5, 9, 0, 4))
    loss = hard_negative_info_nce(a, p, n)
    once = torch.autograd.grad(loss, (a, p, n), retain_graph=True)
    twice = torch.autograd.grad(loss, (a, p, n), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        twice[0].sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_gives_the_bits_of_eager(reduction: str) -> None:
    inputs = matrices(20, 50, 10, 8)
    options = {**VARIANTS["drawn"], **ids_of(20, 50), "reduction": reduction}
    options["seed"] = torch.tensor(11)
    compiled = torch.compile(hard_negative_info_nce, fullgraph=True, backend="aot_eager")
    upstream = torch.randn(20 if reduction == "none" else ())
    eager = run(inputs, options, upstream)
    leaves = oracles.leaves(*inputs)
    loss = compiled(*leaves[:3], noise=leaves[3], **options)
    traced = [loss, *torch.autograd.grad(loss, leaves, upstream)]
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


def test_what_forward_saves_has_the_shapes_that_tracing_promises(plan: str) -> None:
    a, p, n, e = matrices(7, 300, 5, 5)
    for reduction in ("mean", "none"):
        for needs in ([True] * 4, [True, False, False, False], [False] * 3 + [True], [False] * 4):
            call = Problem(
                a, p, n, e, None, None, torch.tensor(0), 1.0, 2.0, 0.1, 0.4, 0.4, 0.1, "paper",
                reduction,
            )  # fmt: skip
            _, saved = native.forward(call, needs)
            assert [tuple(t.shape) for t in saved] == native.saved_shapes(call, needs)


MEMORY = """
import resource, sys, torch
from seqrec_kernels import backend, hard_negative_info_nce
torch.set_num_threads(1)
def step(rows):
    z = torch.randn(rows, 64, requires_grad=True)
    ids = torch.arange(rows // 2).repeat(2)
    with backend("native"):
        hard_negative_info_nce(z, z.roll(rows // 2, 0), z, noise=torch.randn(rows, 64),
            anchor_ids=ids, negative_ids=ids, focal_scale=8.0, margin=0.2).backward()
step(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_of_a_batch_of_4096_is_that_of_its_inputs_and_a_workspace(version: str) -> None:  # noqa: F811
    if version == "portable":
        pytest.skip("the same sizes as the others, and slow")
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # dense: 268 MB a matrix of all pairs, and 17 GB the mixed vectors
    assert int(out.stdout) < 80e6, f"{int(out.stdout) / 1e6:.0f} MB"
