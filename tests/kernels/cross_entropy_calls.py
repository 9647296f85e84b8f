"""Random calls of the loss, and its gradients, for the files that test it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import torch
from torch import Tensor

from seqrec_kernels import catalog_cross_entropy


def problem(
    m: int, v: int, d: int, slots: int | None = None, *, bias: bool = False, first: int = 0
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Queries, items, targets and options of a random call."""
    options: dict[str, Any] = {"first_item": first, "temperature": 0.7}
    if bias:
        options["item_bias"] = torch.randn(v)
    shape = (m,) if slots is None else (m, slots)
    targets = torch.randint(first, v, shape)
    if slots is not None:
        targets[torch.rand(shape) < 0.3] = -1
        options["weights"] = torch.rand(shape)
    return torch.randn(m, d), torch.randn(v, d), targets, options


def gradients(
    loss_of: Callable[..., Tensor],
    q: Tensor,
    e: Tensor,
    y: Tensor,
    options: dict[str, Any],
    upstream: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The loss and the gradients of queries, items and item_bias, where they exist."""
    options = dict(options)
    q, e = oracles.leaves(q, e, dtype=dtype)
    inputs = [q, e]
    if options.get("item_bias") is not None:
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        (options["item_bias"],) = oracles.leaves(options["item_bias"], dtype=kept)
        inputs.append(options["item_bias"])
    if options.get("weights") is not None:
        options["weights"] = options["weights"].to(dtype or options["weights"].dtype)
    loss = loss_of(q, e, y, **options)
    return [loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))]


def neither_threads_nor_repetition_change_a_bit(
    q: Tensor, e: Tensor, y: Tensor, options: dict[str, Any], threads: int
) -> None:
    """Both reductions of a call, again, and by one thread of so many."""
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        upstream = torch.randn(q.shape[:1] if reduction == "none" else ())
        ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
        again = gradients(catalog_cross_entropy, q, e, y, options, upstream)
        torch.set_num_threads(1)
        alone = gradients(catalog_cross_entropy, q, e, y, options, upstream)
        torch.set_num_threads(threads)
        for a, b, c in zip(ours, again, alone, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)
