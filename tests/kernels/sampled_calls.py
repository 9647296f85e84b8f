"""Random calls of the sampled losses, and their gradients, for the files that test them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import oracles
import torch
from torch import Tensor

from seqrec_kernels import backend, bce_loss, bpr_loss, sampled_softmax_loss

REDUCTIONS = ("mean", "sum", "none")
NAMES = ("loss", "dq", "de", "dlog_q")


class Kind(NamedTuple):
    """A loss, as the function and as what the oracle calls it."""

    function: Callable[..., Tensor]
    name: str
    options: dict[str, Any]
    corrected: bool = False


LOSSES = {
    "bce": Kind(bce_loss, "bce", {}),
    "gbce": Kind(bce_loss, "bce", {"beta": 0.3}),
    "bpr": Kind(bpr_loss, "bpr", {}),
    "softmax": Kind(sampled_softmax_loss, "softmax", {}),
    "corrected": Kind(sampled_softmax_loss, "softmax", {}, corrected=True),
}


class Call(NamedTuple):
    """Arguments of a random call."""

    queries: Tensor
    items: Tensor
    positives: Tensor
    negatives: Tensor
    log_q: Tensor
    options: dict[str, Any]


def call(
    rows: int, count: int, items: int, width: int, *, shared: bool = False, size: float = 1.0,
    **options: Any,
) -> Call:  # fmt: skip
    """A fifth of the ids empty; with few items, repeated within rows and hit by the positives.

    Args:
        size: standard deviation of a logit before the temperature.
    """
    scale = (size / max(width, 1) ** 0.5) ** 0.5
    positives = torch.randint(items, (rows,))
    negatives = torch.randint(items, (count,) if shared else (rows, count))
    positives[torch.rand(positives.shape) < 0.2] = -1
    negatives[torch.rand(negatives.shape) < 0.2] = -1
    return Call(
        torch.randn(rows, width) * scale,
        torch.randn(items, width) * scale,
        positives,
        negatives,
        torch.randn(items),
        {"temperature": 0.7, **options},
    )


def upstream_of(made: Call) -> Tensor:
    """A random upstream gradient in the loss's shape."""
    none = made.options.get("reduction") == "none"
    return torch.randn(made.queries.shape[:1] if none else ())


def gradients(
    kind: Kind, made: Call, upstream: Tensor, dtype: torch.dtype | None = None,
    function: Callable[..., Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """The loss and the gradients of queries, items and, where it corrects, log_q."""
    q, e = oracles.leaves(made.queries, made.items, dtype=dtype)
    inputs, options = [q, e], {**made.options, **kind.options}
    if kind.corrected:
        narrow = dtype is None or dtype != torch.float64
        (log_q,) = oracles.leaves(made.log_q, dtype=torch.float32 if narrow else dtype)
        inputs.append(log_q)
        options["log_q"] = log_q
    loss = (function or kind.function)(q, e, made.positives, made.negatives, **options)
    return [loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))]


def exact(kind: Kind, made: Call, upstream: Tensor) -> list[Tensor]:
    """The same by the oracle, in float64."""

    def oracle(*arguments: Tensor, **options: Any) -> Tensor:
        return oracles.sampled(kind.name, *arguments, **options)

    return gradients(kind, made, upstream, torch.float64, oracle)


def agrees(kind: Kind, made: Call, floor: float = 2e-6) -> list[Tensor]:
    """Loss and all gradients, under a random upstream gradient, against oracle and reference."""
    upstream = upstream_of(made)
    right = exact(kind, made, upstream)
    with backend("reference"):
        plain = gradients(kind, made, upstream)
        same = gradients(kind, made, upstream, torch.float64)
    ours = gradients(kind, made, upstream)
    for name, our, true, dense, dense64 in zip(NAMES, ours, right, plain, same, strict=False):
        torch.testing.assert_close(dense64, true, rtol=1e-9, atol=1e-11, msg=name)
        assert our.isfinite().all(), name
        oracles.close(our, true, dense, name, floor)
    return ours


def extreme_logits_stay_finite(loss: str, shared: bool, size: float) -> None:
    """Values and gradients of the implementation in force, beside float64."""
    made = call(8, 6, 9, 4, shared=shared, size=size, reduction="none")
    upstream = torch.ones(8)
    ours = gradients(LOSSES[loss], made, upstream)
    value, *slopes = exact(LOSSES[loss], made, upstream)
    assert all(t.isfinite().all() for t in ours)
    torch.testing.assert_close(ours[0].double(), value, rtol=1e-5, atol=1e-5 * max(size, 1))
    # float32 knows a logit to a ten-millionth of its size, and as well its slopes
    for our, true in zip(ours[1:], slopes, strict=True):
        scale = max(float(true.abs().max()), 1e-30) * max(1e-5, 1e-5 * size)
        torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=scale)
