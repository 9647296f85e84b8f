"""Forward and backward as one call that can be timed, and the gate in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ._common import is_ours

# Norm of a gradient's error over the norm of the gradient, against float64: ours, and a peer's,
# which is left out only where it computes something else (bfloat16 logits alone cost a percent).
TOLERANCE = {
    ("cpu", torch.float32): (1e-5, 1e-3),
    ("cuda", torch.float32): (5e-5, 1e-3),  # TF32 in three parts; in one it would be 3e-4
    ("cpu", torch.bfloat16): (1e-2, 5e-2),
    ("cuda", torch.bfloat16): (1e-2, 5e-2),
}


class Gradients:
    """The leaves of a case, whose gradients each call writes anew.

    Args:
        leaves: by the name that an error gives them.
    """

    def __init__(self, **leaves: Tensor) -> None:
        self._leaves = leaves

    def clear(self) -> None:
        """Let go of what an earlier call has left."""
        for leaf in self._leaves.values():
            leaf.grad = None

    def step(
        self, forward: Callable[..., Tensor], *arguments: object, upstream: Tensor | None = None
    ) -> Callable[[], None]:
        """A call of ``forward(*arguments)`` and of its backward."""

        def run() -> None:
            self.clear()
            forward(*arguments).backward(upstream)

        return run

    def check(
        self,
        exact: Sequence[Tensor],
        rival: str,
        tolerance: Mapping[tuple[str, torch.dtype], tuple[float, float]] = TOLERANCE,
    ) -> None:
        """AssertionError where the gradients that this rival left are not the exact ones, float64.

        Args:
            exact: a gradient a leaf, in order.
            rival: whose gradients they are.
            tolerance: as `TOLERANCE`.
        """
        for (name, leaf), right in zip(self._leaves.items(), exact, strict=True):
            assert leaf.grad is not None, f"no gradient of {name}"
            allowed = tolerance[leaf.device.type, leaf.dtype][not is_ours(rival)]
            error = float((leaf.grad.double() - right).norm() / right.norm())
            assert error <= allowed, f"error {error:.2e} of the gradient of {name} > {allowed:.0e}"
