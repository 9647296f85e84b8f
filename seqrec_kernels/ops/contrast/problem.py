"""What the contrastive losses ask for, as every implementation takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Problem"]


class Problem(NamedTuple):
    """One call of the family, checked; all three public losses are this one problem."""

    anchors: Tensor  # [R, D]
    positives: Tensor  # [R, D]
    negatives: Tensor  # [K, D]
    noise: Tensor | None  # [E, D]
    anchor_ids: Tensor | None  # int64 [R]; both or neither
    negative_ids: Tensor | None  # int64 [K]
    seed: Tensor  # int64, 0-d, on the operator's device; read on the device
    temperature: float
    focal_scale: float | None  # None: plain logits
    margin: float  # 0 without focal_scale
    mix_low: float  # == mix_high: constant, no Philox
    mix_high: float  # uniform draw: low + (high - low) * u, u by Philox stream 1, c0 = k, c1 = r
    mix_weight: float  # 0: no mixed block (info_nce and focal_info_nce are such problems)
    form: str  # "official" | "paper"
    reduction: str  # "mean" | "sum" | "none"
