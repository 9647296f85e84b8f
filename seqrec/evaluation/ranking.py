"""Ranks of held-out targets, from which every metric follows.

A target's rank is two counts: candidates that score higher, and candidates that tie with it
(:func:`seqrec_kernels.catalog_rank`).  They are kept with each run, so any metric at any K under
any tie rule can be had again without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from seqrec.data.split import Targets
from seqrec.data.store import SequenceStore
from seqrec.evaluation.misses import with_misses
from seqrec.files import replacing
from seqrec_kernels import Rank, SeenItems, catalog_rank, rank_metrics
from seqrec_kernels.ops.catalog_rank.metrics import target_metrics

if TYPE_CHECKING:
    from seqrec.methods.base import Method

TIE_RULES = ("mean", "optimistic", "pessimistic")


@dataclass(frozen=True)
class Ranks:
    """Ranks of B targets, all int64 [B].

    Args:
        users: user rows.
        greater: candidates that score higher than the target; :data:`MISS` for a miss.
        equal: candidates that tie with it.
    """

    users: np.ndarray
    greater: np.ndarray
    equal: np.ndarray

    def metrics(self, ks: Sequence[int], ties: str) -> dict[str, float]:
        """HR@k, NDCG@k and MRR@k, means over the targets."""
        rank = Rank(torch.from_numpy(self.greater), torch.from_numpy(self.equal))
        return {name: float(x) for name, x in rank_metrics(rank, tuple(ks), ties).items()}

    def each(self, ks: Sequence[int], ties: str) -> dict[str, np.ndarray]:
        """What `metrics` averages: float64 [B], a value a target."""
        rank = Rank(torch.from_numpy(self.greater), torch.from_numpy(self.equal))
        return {name: x.numpy() for name, x in target_metrics(rank, tuple(ks), ties).items()}

    def save(self, path: Path) -> None:
        """Write ``user, greater, equal`` as .npz; equal ranks are equal bytes."""
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, user=self.users, greater=self.greater, equal=self.equal)

    @staticmethod
    def load(path: Path) -> Ranks:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return Ranks(arrays["user"], arrays["greater"], arrays["equal"])


class Evaluator:
    """Ranks the targets of one split under a method's scores.

    Args:
        targets: users, inputs and held-out items.
        max_length: events of an input that the encoder sees, the last ones.
        device: where the method lives.
        batch: users scored at a time.
    """

    def __init__(self, targets: Targets, max_length: int, device: torch.device, batch: int) -> None:
        self.targets = targets
        self.max_length = max_length
        self.batch = batch
        self._store = SequenceStore(targets.inputs, device)
        self._wanted = torch.from_numpy(targets.items).to(device)
        self._offsets = torch.from_numpy(targets.inputs.offsets).to(device)

    @torch.no_grad()
    def ranks(self, method: Method, rules: Sequence[str] = ("exclude",)) -> dict[str, Ranks]:
        """One :class:`Ranks` a seen rule; every user is encoded once.

        Under ``exclude`` a target that the input holds is a miss (`with_misses`).
        """
        found: dict[str, list[Rank]] = {rule: [] for rule in rules}
        items = method.items()
        for start in range(0, len(self.targets.items), self.batch):
            rows = np.arange(start, min(start + self.batch, len(self.targets.items)))
            queries = method.queries(self._store.batch(rows, self.max_length))
            wanted = self._wanted[start : start + self.batch]
            # the inputs that are encoded are the items seen: one copy on the device serves both
            seen = SeenItems(self._offsets, self._store.values, _device_range(rows, wanted))
            for rule in rules:
                found[rule].append(
                    catalog_rank(
                        queries,
                        items,
                        wanted,
                        seen=None if rule == "include" else seen,
                        seen_score=0.0 if rule == "zero" else None,
                    )
                )
        return {rule: self._collect(rule, parts) for rule, parts in found.items()}

    def _collect(self, rule: str, parts: list[Rank]) -> Ranks:
        greater = torch.cat([part.greater for part in parts]).cpu().numpy()
        equal = torch.cat([part.equal for part in parts]).cpu().numpy()
        return Ranks(self.targets.users, *with_misses(greater, equal, self.targets, rule))


def _device_range(rows: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(int(rows[0]), int(rows[-1]) + 1, device=like.device)
