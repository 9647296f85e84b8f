"""ascend_noise against plain gradient steps in float64, and where plain steps fail."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from contrast_calls import a_row_without_a_direction_stays, call
from torch import Tensor

from seqrec_kernels import ascend_noise, backend
from seqrec_kernels.ops.contrast import ascend


def stepped(
    a: Tensor, p: Tensor, n: Tensor, noise: Tensor, *, steps: int = 4, step_size: float = 1e-3,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Normalised steps along autograd's gradient of the oracle, in float64."""
    a, p, n, noise = (t.double() for t in (a, p, n, noise))
    for _ in range(steps):
        noise = noise.detach().requires_grad_()
        (g,) = torch.autograd.grad(oracles.contrast(a, p, n, noise=noise, **options), noise)
        noise = noise + step_size * g / g.norm(dim=1, keepdim=True)
    return noise.detach()


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (7, 9, 5, 4), (3, 0, 2, 50), (16, 17, 33, 123), (65, 31, 64, 8)],
    ids=str,
)
def test_agrees_with_plain_steps(
    tiny_tiles: None, shape: tuple[int, int, int, int], ids: bool, name: str
) -> None:
    tensors, options = call(*shape, ids=ids)
    exact = stepped(*tensors, step_size=0.1, **options)
    with backend(name):
        found = ascend_noise(*tensors, step_size=0.1, **options)
        exactly = ascend_noise(*(t.double() for t in tensors), step_size=0.1, **options)
    assert found.dtype == torch.float32 and not torch.equal(found, tensors[3])
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exactly, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_values(dtype: torch.dtype) -> None:
    """Made once in float64 by plain steps, outside this repository."""
    h1 = torch.tensor([[1, 2, 0, -1], [0.5, -1, 1.5, 2], [2, 1, -1, 0.5]], dtype=dtype)
    h2 = torch.tensor([[0.5, 1.5, 0.5, -1.5], [1, -0.5, 1, 1.5], [1.5, 0.5, -2, 0]], dtype=dtype)
    noise = torch.tensor([[0.3, -0.2, 0.1, 0.4], [-1, 0.5, 0.8, -0.6]], dtype=dtype)
    labels = torch.tensor([1, 2, 1])
    found = ascend_noise(h1, h2, h2, noise, anchor_ids=labels, negative_ids=labels)
    expected = torch.tensor(
        [
            [0.302400934, -0.200015509, 0.101519285, 0.402815499],
            [-0.998094491, 0.503265759, 0.800271672, -0.601276732],
        ],
        dtype=dtype,
    )
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-7 if dtype == torch.float32 else 1e-9
    )


def test_moves_where_a_plain_gradient_underflows(tiny_tiles: None) -> None:
    """Weights of e^-90 and less are no float32, or their squares are none; the direction stands."""
    tensors, options = call(9, 8, 6, 16, size=60.0)
    a, p, n, noise = tensors
    leaf = noise.clone().requires_grad_()
    (g,) = torch.autograd.grad(oracles.contrast(a, p, n, noise=leaf, **options), leaf)
    assert (g.norm(dim=1) == 0).any()
    found = ascend_noise(a, p, n, noise, steps=2, step_size=0.5, **options)
    exact = stepped(a, p, n, noise, steps=2, step_size=0.5, **options)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    # a step has its length, however far away: here float64 underflows too
    far = ascend_noise(20 * a, 20 * p, n, -20 * a[:6], steps=1, step_size=0.5)
    assert far.isfinite().all()
    torch.testing.assert_close(
        (far + 20 * a[:6]).norm(dim=1), torch.full((6,), 0.5), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_a_row_without_a_direction_stays(tiny_tiles: None, name: str) -> None:
    with backend(name):
        a_row_without_a_direction_stays()


def test_all_left_out_leaves_positives_and_noise() -> None:
    a, p, n, noise = call(6, 7, 4, 3, ids=False)[0]
    ids = {"anchor_ids": torch.zeros(6).long(), "negative_ids": torch.zeros(7).long()}
    found = ascend_noise(a, p, 1e4 * n, noise, step_size=0.1, **ids)
    torch.testing.assert_close(found, ascend_noise(a, p, n[:0], noise, step_size=0.1))


def test_nothing_is_differentiable_and_no_input_is_written() -> None:
    tensors, options = call(6, 7, 4, 3)
    leaves = [t.T.contiguous().T.requires_grad_() for t in tensors]  # columns dense
    copies = [t.detach().clone() for t in leaves]
    found = ascend_noise(*leaves, step_size=0.1, **options)
    assert not found.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(leaves, copies, strict=True))
    torch.testing.assert_close(found, ascend_noise(*tensors, step_size=0.1, **options))
    assert torch.equal(found, ascend_noise(*leaves, step_size=0.1, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_noise_is_moved_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    tensors, options = call(6, 7, 4, 8)
    narrow = [t.to(dtype) for t in tensors]
    found = ascend_noise(*narrow, steps=8, step_size=0.02, **options)
    wide = ascend_noise(*(t.float() for t in narrow), steps=8, step_size=0.02, **options)
    assert found.dtype == dtype and torch.equal(found, wide.to(dtype))


def test_compiled_gives_the_bits_of_eager_and_the_operator_is_sound() -> None:
    tensors, options = call(20, 30, 9, 8)
    compiled = torch.compile(ascend_noise, fullgraph=True)
    assert torch.equal(compiled(*tensors, **options), ascend_noise(*tensors, **options))
    ids = options["anchor_ids"], options["negative_ids"]
    torch.library.opcheck(
        torch.ops.seqrec_kernels.ascend_noise.default, (*tensors, *ids, 0.7, 2, 0.1, "blocked")
    )


@pytest.mark.parametrize("noise", [400, 50])
def test_no_tensor_is_larger_than_the_workspace_or_an_input(
    monkeypatch: pytest.MonkeyPatch, noise: int
) -> None:
    monkeypatch.setattr(ascend, "FLOATS", 2**13)
    tensors, options = call(500, 300, noise, 4)
    with oracles.Watch() as watch, torch.no_grad():
        ascend.blocked(
            ascend.Ascent(*tensors, options["anchor_ids"], options["negative_ids"], 0.7, 2, 0.1)
        )
    assert watch.largest <= 4 * 2**13
    assert watch.largest < 4 * 500 * noise / 2


def test_arguments_are_named_with_their_value() -> None:
    a, n = torch.randn(3, 4), torch.randn(6, 4)
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (TypeError, r"noise must be a torch.Tensor, not NoneType", None, {}),
        (ValueError, r"anchors have width 4 but noise have width 2", n[:, :2], {}),
        (ValueError, r"steps is -1; it must be at least 0", n, {"steps": -1}),
        (ValueError, r"step_size is inf; it must be finite", n, {"step_size": float("inf")}),
        (ValueError, r"temperature is 0", n, {"temperature": 0.0}),
        (ValueError, r"anchor_ids without", n, {"anchor_ids": torch.arange(3)}),
    ]
    for kind, message, noise, options in cases:
        with pytest.raises(kind, match=message):
            ascend_noise(a, a, n, noise, **options)


@pytest.mark.parametrize("name", ["blocked", "reference"])
def test_autocast_is_ignored(name: str) -> None:
    # bfloat16 has no room for a step of 1e-3 beside entries of 1
    tensors, options = call(7, 9, 5, 4)
    with backend(name):
        expected = ascend_noise(*tensors, **options)
        with torch.autocast("cpu", torch.bfloat16):
            found = ascend_noise(*tensors, **options)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
