"""Independent answers, written from the contract's sentences and not from the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def cross_entropy(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    item_bias: Tensor | None = None,
    first_item: int = 0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """The loss in float64, row by row, with the soft labels spelled out over the catalogue."""
    logits = queries @ items.T / temperature
    if item_bias is not None:
        logits = logits + item_bias
    logits = logits[:, first_item:]
    lists = targets[:, None] if targets.dim() == 1 else targets
    losses, counted = [], 0
    for row in range(queries.shape[0]):
        filled = [t for t in range(lists.shape[1]) if int(lists[row, t]) != -1]
        counted += bool(filled)
        label = torch.zeros(logits.shape[1], dtype=torch.float64)
        for t in filled:
            given = 1 / len(filled) if weights is None else float(weights.view_as(lists)[row, t])
            label[int(lists[row, t]) - first_item] += given
        log_p = logits[row] - torch.logsumexp(logits[row], 0)
        losses.append(-(torch.where(label == 0, 0, label * log_p)).sum())
    stacked = torch.stack(losses) if losses else queries.sum() + torch.zeros(0, dtype=torch.float64)
    if reduction == "none":
        return stacked
    return stacked.sum() / (max(counted, 1) if reduction == "mean" else 1)


def rank(
    scores: Sequence[Sequence[float]],
    targets: Sequence[Sequence[int]],
    first_item: int = 0,
    seen: Sequence[set[int]] | None = None,
    seen_score: float | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Ranks counted one comparison at a time."""
    greater, equal = [], []
    for b, row in enumerate(targets):
        met = seen[b] if seen is not None else set()
        score = {
            v: seen_score if v in met and seen_score is not None else s
            for v, s in enumerate(scores[b])
            if v >= first_item
        }
        above, level = [], []
        for t in row:
            if t == -1:
                above.append(-1)
                level.append(-1)
                continue
            others = [
                s for v, s in score.items() if v != t and (seen_score is not None or v not in met)
            ]
            if math.isnan(score[t]):
                above.append(len(others))
                level.append(0)
            else:
                above.append(sum(s > score[t] for s in others))
                level.append(sum(s == score[t] for s in others))
        greater.append(above)
        equal.append(level)
    return greater, equal


def topk(
    scores: Sequence[Sequence[float]],
    k: int,
    first_item: int = 0,
    seen: Sequence[set[int]] | None = None,
) -> list[list[int]]:
    """Ids in the order (score descending, id ascending), padded with -1."""
    found = []
    for b, row in enumerate(scores):
        met = seen[b] if seen is not None else set()
        able = [
            (-s, v)
            for v, s in enumerate(row)
            if v >= first_item and v not in met and not math.isnan(s) and s != -math.inf
        ]
        ids = [v for _, v in sorted(able)][:k]
        found.append(ids + [-1] * (k - len(ids)))
    return found


def close(ours: Tensor, exact: Tensor, plain: Tensor, what: str, floor: float = 2e-6) -> None:
    """Our error against float64 is at most twice that of plain torch in the same dtype.

    ``floor``, a share of the largest value (or of a tenth, the size of probabilities that cancel),
    stands for the case that plain torch is luckily exact.
    """
    ours, plain, exact = (t.detach().double() for t in (ours, plain, exact))
    assert ours.shape == exact.shape, what
    if exact.numel() == 0:
        return
    allowed = 2 * (plain - exact).abs().max() + floor * exact.abs().max().clamp(min=0.1)
    error = (ours - exact).abs().max()
    assert error <= allowed, f"{what}: error {float(error):.3g}, allowed {float(allowed):.3g}"


def leaves(*tensors: Any, dtype: torch.dtype | None = None) -> list[Any]:
    """Fresh leaves with the same values, that want gradients."""
    return [
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_()
        for t in tensors
    ]


class Watch(TorchDispatchMode):
    """Records operators and the largest tensor any of them returns."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.untyped_storage().size())
        return out
