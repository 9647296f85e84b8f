"""Module forms of the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqrec_kernels import checks
from seqrec_kernels.ops import contrast, sampled
from seqrec_kernels.ops.catalog_cross_entropy import catalog_cross_entropy

__all__ = [
    "BCELoss",
    "BPRLoss",
    "CatalogCrossEntropy",
    "FocalInfoNCE",
    "HardNegativeInfoNCE",
    "InfoNCE",
    "SampledSoftmaxLoss",
]


class _Fixed(torch.nn.Module):
    """A loss and its numbers, which the derived class has checked."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self._function = function
        self._options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())


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


class _Contrast(_Fixed):
    """A contrastive loss with its numbers fixed."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        contrast.numbers(**options)
        super().__init__(function, **options)

    def forward(
        self,
        anchors: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        noise: Tensor | None = None,
        anchor_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        **seed: int | Tensor,
    ) -> Tensor:
        """The loss of ``anchors [R, D]`` against ``negatives [K, D]``; see the function."""
        return self._function(
            anchors,
            positives,
            negatives,
            noise=noise,
            anchor_ids=anchor_ids,
            negative_ids=negative_ids,
            **seed,
            **self._options,
        )


class InfoNCE(_Contrast):
    """``info_nce`` with its numbers fixed; it owns no parameters.

    Args:
        temperature, reduction: as in the function.
    """

    def __init__(self, *, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(contrast.info_nce, temperature=temperature, reduction=reduction)


class FocalInfoNCE(_Contrast):
    """``focal_info_nce`` with its numbers fixed; it owns no parameters.

    Args:
        focal_scale, margin, temperature, reduction: as in the function.
    """

    def __init__(
        self,
        *,
        focal_scale: float,
        margin: float = 0.0,
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            contrast.focal_info_nce,
            focal_scale=focal_scale,
            margin=margin,
            temperature=temperature,
            reduction=reduction,
        )


class HardNegativeInfoNCE(_Contrast):
    """``hard_negative_info_nce`` with its numbers fixed; it owns no parameters.

    A call takes ``seed`` too; with a range of ``mix``, give each step its own.

    Args:
        focal_scale, margin, mix, mix_weight, form, temperature, reduction: as in the function.
    """

    def __init__(
        self,
        *,
        focal_scale: float | None = None,
        margin: float = 0.0,
        mix: float | tuple[float, float] = 0.4,
        mix_weight: float = 0.1,
        form: str = "official",
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            contrast.hard_negative_info_nce,
            focal_scale=focal_scale,
            margin=margin,
            mix=mix,
            mix_weight=mix_weight,
            form=form,
            temperature=temperature,
            reduction=reduction,
        )


class _Sampled(_Fixed):
    """A loss against sampled negatives with its numbers fixed."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        sampled.numbers(**options)
        super().__init__(function, **options)

    def forward(
        self,
        queries: Tensor,
        items: Tensor,
        positives: Tensor,
        negatives: Tensor,
        **log_q: Tensor | None,
    ) -> Tensor:
        """The loss of ``queries [M, D]`` against rows of ``items [V, D]``; see the function."""
        return self._function(queries, items, positives, negatives, **log_q, **self._options)


class BCELoss(_Sampled):
    """``bce_loss`` with its numbers fixed; it owns no parameters.

    Args:
        beta, temperature, drop_hits, reduction: as in the function.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        temperature: float = 1.0,
        drop_hits: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            sampled.bce_loss,
            beta=beta,
            temperature=temperature,
            drop_hits=drop_hits,
            reduction=reduction,
        )


class BPRLoss(_Sampled):
    """``bpr_loss`` with its numbers fixed; it owns no parameters.

    Args:
        temperature, drop_hits, reduction: as in the function.
    """

    def __init__(
        self, *, temperature: float = 1.0, drop_hits: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(
            sampled.bpr_loss, temperature=temperature, drop_hits=drop_hits, reduction=reduction
        )


class SampledSoftmaxLoss(_Sampled):
    """``sampled_softmax_loss`` with its numbers fixed; it owns no parameters.

    A call takes ``log_q`` too.

    Args:
        temperature, drop_hits, reduction: as in the function.
    """

    def __init__(
        self, *, temperature: float = 1.0, drop_hits: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(
            sampled.sampled_softmax_loss,
            temperature=temperature,
            drop_hits=drop_hits,
            reduction=reduction,
        )
