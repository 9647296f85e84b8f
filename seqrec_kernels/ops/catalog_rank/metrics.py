"""HR, NDCG and MRR from exact ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqrec_kernels import checks
from seqrec_kernels.types import Rank

__all__ = ["rank_metrics", "target_metrics"]


def rank_metrics(
    rank: Rank, ks: Sequence[int] = (5, 10, 20), ties: str = "mean"
) -> dict[str, float]:
    """HR@k, NDCG@k and MRR@k over all targets, one relevant item each.

    A target that stands at place p (the best place is 1) has HR@k = [p <= k],
    NDCG@k = [p <= k] / log2(p + 1) and MRR@k = [p <= k] / p. With g candidates above it and n level
    with it, p is anything from g + 1 to g + n + 1; ``ties`` says which:

    * "mean": the metric's expected value when tied items are shuffled, the average over those
      places, HR@k = clip((k - g) / (n + 1), 0, 1);
    * "optimistic": p = g + 1, every tie is won;
    * "pessimistic": p = g + n + 1, every tie is lost.

    Args:
        rank: counts in any shape; targets with ``greater`` = -1 do not count.
        ks: cut-offs, each >= 1.
        ties: the tie rule.

    Returns:
        ``{"HR@5": ..., "NDCG@5": ..., "MRR@5": ..., ...}``, Python floats computed in float64; all
        0.0 where no target counts. Reads the device once.

    Raises:
        TypeError: counts that are no int64 tensors, a cut-off that is no int.
        ValueError: an unknown tie rule, a cut-off below 1, counts of different shapes.
    """
    found = target_metrics(rank, ks, ties)
    return {name: float(x.mean()) if x.numel() else 0.0 for name, x in found.items()}


def target_metrics(
    rank: Rank, ks: Sequence[int] = (5, 10, 20), ties: str = "mean"
) -> dict[str, Tensor]:
    """What `rank_metrics` averages: float64 ``[targets that count]`` on the CPU, in their order."""
    checks.one_of("ties", ties, ("mean", "optimistic", "pessimistic"))
    ks = [checks.integer("ks", k, 1) for k in ks]
    greater, equal = checks.tensor("rank.greater", rank[0]), checks.tensor("rank.equal", rank[1])
    for name, counts in (("rank.greater", greater), ("rank.equal", equal)):
        if counts.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, not {counts.dtype}")
    if greater.shape != equal.shape:
        raise ValueError(
            f"rank.greater is {tuple(greater.shape)} but rank.equal is {tuple(equal.shape)}"
        )
    counts = greater >= 0
    greater, equal = greater[counts].cpu(), equal[counts].cpu()
    if ties == "optimistic":
        equal = torch.zeros_like(equal)
    elif ties == "pessimistic":
        greater, equal = greater + equal, torch.zeros_like(equal)

    metrics: dict[str, Tensor] = {}
    for k in ks:
        place = torch.arange(1, k + 1, dtype=torch.float64)
        gains = {
            "HR": torch.ones_like(place),
            "NDCG": 1.0 / torch.log2(place + 1),
            "MRR": 1.0 / place,
        }
        for name, gain in gains.items():
            metrics[f"{name}@{k}"] = _expected(gain, greater, equal)
    return metrics


def _expected(gain: Tensor, greater: Tensor, equal: Tensor) -> Tensor:
    """For each target the mean of ``gain`` over its places (0 beyond its end)."""
    k = gain.shape[0]
    # sums of the first n gains; a target's places are greater .. greater + equal, counted from 0
    sums = torch.cat((gain.new_zeros(1), gain.cumsum(0)))
    above = sums[greater.clamp(max=k)]
    through = sums[(greater + equal + 1).clamp(max=k)]
    return (through - above) / (equal + 1)
