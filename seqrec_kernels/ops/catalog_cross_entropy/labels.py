"""Sparse soft labels in one form, for every implementation of the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """One call: the arguments as checked, targets and weights not yet brought into one form."""

    queries: Tensor  # [M, D]
    items: Tensor  # [V, D]
    targets: Tensor  # int64 [M] or [M, T]
    weights: Tensor | None  # shape of targets
    item_bias: Tensor | None  # [V]
    first_item: int
    temperature: float
    reduction: str


class Labels(NamedTuple):
    """Targets and weights as matrices; column 0 is ``first_item``."""

    columns: Tensor  # int64 [M, T], 0 in empty slots
    weights: Tensor  # [M, T], 0 in empty slots
    mass: Tensor  # [M], sum of the row's weights
    scale: Tensor  # [M], d(reduced loss) / d(loss of the row)
    wrong: Tensor  # bool [M], a target out of range: the row's loss is NaN


def labels_of(problem: Problem, dtype: torch.dtype) -> Labels:
    """The labels of ``problem`` with weights, mass and scale in ``dtype``.

    A slot with an id out of range is treated as empty, so that nothing reads outside the table; its
    row is marked in ``wrong``. A row counts when it has a filled slot, whatever its weights.
    """
    targets = problem.targets if problem.targets.dim() == 2 else problem.targets[:, None]
    in_range = (targets >= problem.first_item) & (targets < problem.items.shape[0])
    wrong = ((targets != -1) & ~in_range).any(1)
    columns = torch.where(in_range, targets - problem.first_item, 0)
    filled = in_range.to(dtype)
    if problem.weights is None:
        weights = filled / filled.sum(1, keepdim=True).clamp(min=1)
    else:
        # where, not a product: what stands in an empty slot may be NaN
        weights = torch.where(
            in_range, problem.weights.detach().reshape(targets.shape).to(dtype), 0
        )
    counts = (targets != -1).any(1).to(dtype)
    if problem.reduction == "mean":
        scale = counts / counts.sum().clamp(min=1)
    else:
        scale = counts
    return Labels(columns, weights, weights.sum(1), scale, wrong)


def reduced(problem: Problem, labels: Labels, lse: Tensor, chosen: Tensor) -> Tensor:
    """The reduced loss from each row's LSE, ``[M]``, and its logits at the targets, ``[M, T]``.

    Both are finite, but for the logit of an item taken out, which may be -inf or a finite stand-in.
    """
    if problem.item_bias is not None:
        # a target taken out has no probability, however a finite stand-in rounded
        out = problem.item_bias.detach()[problem.first_item :] == -torch.inf
        chosen = torch.where(out[labels.columns], -torch.inf, chosen)
    # a weight of 0 beside a logit of -inf adds nothing
    pull = torch.where(labels.weights == 0, 0, labels.weights * chosen).sum(1)
    losses = torch.where(labels.scale > 0, labels.mass * lse - pull, 0)
    losses = torch.where(labels.wrong, torch.nan, losses)
    return losses if problem.reduction == "none" else (labels.scale * losses).sum()


def shapes_saved(problem: Problem, needs: list[bool], one_pass: bool) -> list[tuple[int, ...]]:
    """What a CPU path saves: the gradients wanted after one pass, else the LSE of the rows."""
    if not any(needs):
        return []
    if not one_pass:
        return [tuple(problem.queries.shape[:1])]
    items, width = problem.items.shape
    shapes = [tuple(problem.queries.shape), (items, width), (items,)]
    return [shape for shape, need in zip(shapes, needs, strict=True) if need]
