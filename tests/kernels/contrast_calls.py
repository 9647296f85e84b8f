"""Random calls of the contrastive losses, and their gradients, for the files that test them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import oracles
import torch
from torch import Tensor

from seqrec_kernels import backend, hard_negative_info_nce

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
