"""Independent answers, written from the contract's sentences and not from the package."""

from __future__ import annotations

import math
import struct
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


def contrast(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    noise: Tensor | None = None,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    focal_scale: float | None = None,
    margin: float = 0.0,
    mix: float | tuple[float, float] = 0.4,
    mix_weight: float = 0.0,
    seed: int = 0,
    form: str = "official",
) -> Tensor:
    """The contrastive losses through explicit mixed vectors ``[R, K, D]``."""
    rows, count = anchors.shape[0], negatives.shape[0]
    paper = form == "paper"

    def weight(x: Tensor) -> Tensor:
        return torch.ones_like(x) if focal_scale is None else torch.tanh(x / focal_scale)

    def negative(x: Tensor) -> Tensor:
        outside = margin if paper and focal_scale is not None else 0.0
        return (x * (weight(x) + margin - outside) + outside) / temperature

    kept = torch.ones(rows, count, dtype=torch.bool)
    if anchor_ids is not None and negative_ids is not None:
        kept = anchor_ids[:, None] != negative_ids[None, :]
    s = (anchors * positives).sum(1)
    first = s * weight(s) / temperature
    terms = [first[:, None]]
    weights = [torch.ones(rows, 1, dtype=first.dtype)]

    def add(logits: Tensor, among: Tensor, share: float) -> None:
        terms.append(torch.where(among, logits, -torch.inf))
        weights.append(torch.full_like(logits, share))

    add(negative(anchors @ negatives.T), kept, 1.0)
    if noise is not None:
        logits = negative(anchors @ noise.T)
        add(logits, torch.ones_like(logits, dtype=torch.bool), 1.0)
    if mix_weight > 0:
        if isinstance(mix, tuple):
            low, high = mix
            drawn = [[philox(seed, k, r, 1) for k in range(count)] for r in range(rows)]
            ratios = low + (high - low) * torch.tensor(drawn, dtype=torch.float64).view(rows, count)
        else:
            ratios = torch.full((rows, count), mix, dtype=torch.float64)
        share = ratios[:, :, None]
        bracket = share * unit(anchors)[:, None] + (1 - share) * unit(negatives)[None]
        there = (bracket.square().sum(2, keepdim=True) >= 1e-6).expand_as(bracket)
        hard = length(negatives)[None] * unit(torch.where(there, bracket, 0))
        stopped = (anchors[:, None] * hard.detach()).sum(2)
        if paper and focal_scale is not None:
            whole = (anchors[:, None] * hard).sum(2)
            add(stopped * weight(whole) / temperature, kept, mix_weight)
        else:
            add(negative(stopped), kept, mix_weight)
    logits = torch.cat(terms, 1) + torch.cat(weights, 1).log()
    losses = logits.logsumexp(1) - first
    if reduction == "none":
        return losses
    return losses.sum() / (max(rows, 1) if reduction == "mean" else 1)


def sampled(
    loss: str,
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    log_q: Tensor | None = None,
    drop_hits: bool = False,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """The sampled losses, row by row and negative by negative."""

    def plus(x: Tensor) -> Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    def logit(row: int, item: int) -> Tensor:
        x = queries[row].dot(items[item]) / temperature
        return x if log_q is None else x - log_q[item]

    losses, counted = [], 0
    for row in range(queries.shape[0]):
        own = int(positives[row])
        among = negatives if negatives.dim() == 1 else negatives[row]
        others = [int(n) for n in among if int(n) != -1 and not (drop_hits and int(n) == own)]
        if own == -1 or not others:
            losses.append(queries[row].sum() * 0)
            continue
        counted += 1
        a, b = logit(row, own), torch.stack([logit(row, n) for n in others])
        if loss == "bce":
            losses.append(beta * plus(-a) + plus(b).sum())
        elif loss == "bpr":
            losses.append(plus(b - a).mean())
        else:
            losses.append(torch.cat([a[None], b]).logsumexp(0) - a)
    stacked = torch.stack(losses) if losses else queries.sum() + torch.zeros(0, dtype=queries.dtype)
    stacked = stacked + 0 * items.sum() + (0 if log_q is None else 0 * log_q.sum())
    if reduction == "none":
        return stacked
    return stacked.sum() / (max(counted, 1) if reduction == "mean" else 1)


def length(x: Tensor) -> Tensor:
    """Norms of the last dimension, kept; 0 with gradient 0 for a vector of zeros."""
    square = x.square().sum(-1, keepdim=True)
    return torch.where(square == 0, 0, torch.where(square == 0, 1, square).sqrt())


def unit(x: Tensor) -> Tensor:
    """Unit vectors; 0 with gradient 0 for a vector of zeros."""
    norm = length(x)
    return torch.where(norm == 0, 0, x / torch.where(norm == 0, 1, norm))


def philox_words(seed: int, c0: int, c1: int, stream: int) -> list[int]:
    """The four words of a counter, by Philox4x32-10 in Python's integers."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    word = [c0, c1, 0, stream]
    for _ in range(10):
        one, two = 0xD2511F53 * word[0], 0xCD9E8D57 * word[2]
        word = [
            two >> 32 ^ word[1] ^ key[0], two & 0xFFFFFFFF,
            one >> 32 ^ word[3] ^ key[1], one & 0xFFFFFFFF,
        ]  # fmt: skip
        key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return word


def philox_word(seed: int, c0: int, c1: int, stream: int) -> int:
    """The first word."""
    return philox_words(seed, c0, c1, stream)[0]


def philox(seed: int, c0: int, c1: int, stream: int) -> float:
    """The contract's uniform number."""
    return (philox_word(seed, c0, c1, stream) >> 8) * 2.0**-24


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


def recall(
    queries: Sequence[Sequence[float]],
    items: Sequence[Sequence[float]],
    n: int,
    first_item: int = 0,
) -> list[int]:
    """The n items that are largest in the column of the largest mean, padded with -1."""
    means = []
    for column in zip(*queries, strict=True):
        finite = all(map(math.isfinite, column))
        mean = (math.fsum(column) if finite else sum(column)) / len(column)
        means.append(struct.unpack("f", struct.pack("f", mean))[0])
    numbers = [m for m in means if not math.isnan(m)]
    if not numbers:
        return [-1] * n
    c = means.index(max(numbers))
    able = [(-row[c], v) for v, row in enumerate(items) if v >= first_item]
    ids = [v for value, v in sorted(pair for pair in able if not math.isnan(pair[0]))][:n]
    return ids + [-1] * (n - len(ids))


def rerank(
    scores: Sequence[Sequence[float]],
    candidates: Sequence[Sequence[int]],
    top_m: int,
    *,
    forbidden: Sequence[Sequence[int]] | None = None,
    repeated: str = "drop",
    seed: int = 0,
) -> list[int]:
    """What each row draws, ``candidates`` its own and the shared ones."""
    found = []
    for b, slots in enumerate(candidates):
        met = set() if forbidden is None else set(forbidden[b])
        able = [
            (-scores[b][v], v)
            for v in (set(slots) if repeated == "drop" else slots)
            if v != -1 and v not in met and not math.isnan(scores[b][v])
        ]
        kept = sorted(able)[:top_m]
        place = philox_word(seed, b, 0, 2) * len(kept) >> 32
        found.append(kept[place][1] if kept else -1)
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
