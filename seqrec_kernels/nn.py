"""Module forms of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import checks
from seqrec_kernels.ops.catalog_cross_entropy import catalog_cross_entropy

__all__ = ["CatalogCrossEntropy"]


class CatalogCrossEntropy(torch.nn.Module):
    """``catalog_cross_entropy`` with its numbers fixed; it owns no parameters.

    Args:
        first_item, temperature, reduction: as in the function.
    """

    def __init__(
        self, *, first_item: int = 0, temperature: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.first_item = checks.integer("first_item", first_item, 0)
        self.temperature = checks.temperature(temperature)
        self.reduction = checks.one_of("reduction", reduction, checks.REDUCTIONS)

    def forward(
        self,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        item_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``queries [M, D]`` against ``items [V, D]``; see the function."""
        return catalog_cross_entropy(
            queries,
            items,
            targets,
            weights,
            item_bias=item_bias,
            first_item=self.first_item,
            temperature=self.temperature,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"first_item={self.first_item}, temperature={self.temperature}, "
            f"reduction={self.reduction!r}"
        )
