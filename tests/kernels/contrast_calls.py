"""Random calls of the contrastive losses, and their gradients, for the files that test them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import oracles
import torch
from torch import Tensor

from seqrec_kernels import ascend_noise, backend, hard_negative_info_nce

NAMES = ("anchors", "positives", "negatives", "noise")
REDUCTIONS = ("mean", "sum", "none")

# every loss of the family, as options of the one that has them all
LOSSES: dict[str, dict[str, Any]] = {
    "info_nce": {"mix_weight": 0.0},
    "focal": {"mix_weight": 0.0, "focal_scale": 3.0, "margin": 0.2},
    "plain mixed": {"mix": 0.4, "mix_weight": 0.3},
    "official": {"mix": 0.4, "mix_weight": 0.1, "focal_scale": 3.0, "margin": 0.2},
    "official, drawn": {
        "mix": (0.1, 0.9), "mix_weight": 0.7, "focal_scale": 3.0, "margin": -0.1, "seed": 2**40 + 5,
    },
    "paper": {
        "mix": 0.4, "mix_weight": 0.5, "focal_scale": 3.0, "margin": 0.2, "form": "paper",
    },
    "paper, drawn": {
        "mix": (0.3, 0.8), "mix_weight": 0.5, "focal_scale": 3.0, "form": "paper", "seed": 7,
    },
}  # fmt: skip


def problem(
    rows: int, count: int, noise: int | None, width: int, *, ids: bool = True, size: float = 1.0
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Anchors, positives, negatives, noise and options of a random call.

    Args:
        size: standard deviation of a similarity.
    """
    scale = (size / width**0.5) ** 0.5
    tensors: list[Tensor | None] = [torch.randn(n, width) * scale for n in (rows, rows, count)]
    tensors.append(None if noise is None else torch.randn(noise, width) * scale)
    options: dict[str, Any] = {"temperature": 0.7}
    if ids:
        options["anchor_ids"] = torch.randint(-2, 3, (rows,))
        options["negative_ids"] = torch.randint(-2, 3, (count,))
    return tensors, options


def call(*shape: int, ids: bool = True, size: float = 1.0) -> tuple[list[Tensor], dict[str, Any]]:
    """Anchors, positives, negatives and noise, all of them, and options of a random call."""
    tensors, options = problem(*shape, ids=ids, size=size)
    return [t for t in tensors if t is not None], options


def gradients(
    loss_of: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    options: dict[str, Any],
    upstream: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The loss and the gradients of all tensors given."""
    anchors, positives, negatives, noise = oracles.leaves(*tensors, dtype=dtype)
    loss = loss_of(anchors, positives, negatives, noise=noise, **options)
    inputs = [t for t in (anchors, positives, negatives, noise) if t is not None]
    return [loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))]


def upstream_of(tensors: Sequence[Tensor | None], options: dict[str, Any]) -> Tensor:
    """A random upstream gradient in the loss's shape."""
    assert tensors[0] is not None
    return torch.randn(tensors[0].shape[:1] if options.get("reduction") == "none" else ())


def agrees(tensors: Sequence[Tensor | None], options: dict[str, Any], floor: float = 2e-6) -> None:
    """Loss and all gradients, under a random upstream gradient, against oracle and reference."""
    upstream = upstream_of(tensors, options)
    exact = gradients(oracles.contrast, tensors, options, upstream, torch.float64)
    with backend("reference"):
        plain = gradients(hard_negative_info_nce, tensors, options, upstream)
        same = gradients(hard_negative_info_nce, tensors, options, upstream, torch.float64)
    ours = gradients(hard_negative_info_nce, tensors, options, upstream)
    for name, our, true, dense, dense64 in zip(
        ("loss", *NAMES), ours, exact, plain, same, strict=False
    ):
        torch.testing.assert_close(dense64, true, rtol=1e-9, atol=1e-11, msg=name)
        oracles.close(our, true, dense, name, floor)


def a_row_without_a_direction_stays() -> None:
    """No gradient, sums that cancel, lengths that overflow, no rows at all; and no step."""
    a, p, n, noise = call(6, 7, 4, 3, ids=False)[0]
    assert torch.equal(ascend_noise(torch.zeros_like(a), p, n, noise), noise)
    opposite = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    still = torch.tensor([[0.0, 2.0, 0.0]])
    assert torch.equal(ascend_noise(opposite, opposite, n[:0], still), still)
    assert torch.equal(ascend_noise(1e30 * a, 1e30 * p, n, 1e30 * noise), 1e30 * noise)
    assert torch.equal(ascend_noise(a[:0], p[:0], n, noise), noise)
    assert ascend_noise(a, p, n, noise[:0]).shape == (0, 3)
    kept = ascend_noise(a, p, n, noise, steps=0)
    assert torch.equal(kept, noise) and kept.data_ptr() != noise.data_ptr()
