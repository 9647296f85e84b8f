"""The best any ranker can do on a synthetic log, and what the best ranker did.

P(v | history) is proportional, over items the user has not had, to
sum_g P(g | history) m_g(v | last) / Z_g. A first event is always of the user's own group and groups
share no item, so P(g | history) is 1 for the group of the first event: one term remains.
Ranking by P is the best there is for every metric that falls with the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqrec.data.philox import permutation
from seqrec.data.split import Jagged, Targets
from seqrec.data.synthetic import Specification, World

# Above this many items the best possible is estimated from some users.
MANY_ITEMS, SOME_USERS = 50_000, 1_000
_VALUES_A_TURN = 4_000_000
_DEVIATIONS = 3


@dataclass(frozen=True)
class BestPossible:
    """The best expected metrics on given histories, and the best ranker's luck with the targets.

    Attributes:
        metrics: "HR@K", "NDCG@K", "MRR@K": the mean over users of the expected gain.
        error: standard error of each; 0 where all users were looked at.
        deviation: s.d. of each metric when the targets are drawn anew, for all users together.
        users: int64 [B], the user rows that were looked at.
        greater, equal: int64 [B], rank of the user's target under the best ranker.
    """

    metrics: dict[str, float]
    error: dict[str, float]
    deviation: dict[str, float]
    users: np.ndarray
    greater: np.ndarray
    equal: np.ndarray


def best_possible(source: str, targets: Targets, ks: Sequence[int]) -> BestPossible:
    """The best possible metrics at ``ks`` for the users of ``targets``.

    Args:
        source: the specification that the log was read from ("synthetic:...").
        targets: histories that begin with the user's first event, as ``split_log`` gives them.
        ks: cut-offs, each at least 1.
    """
    world = World(Specification.parse(source))
    n_items = world.specification.items
    chosen = np.arange(len(targets.items))
    if n_items > MANY_ITEMS and len(chosen) > SOME_USERS:
        chosen = np.sort(permutation(world.specification.seed, 0, len(chosen))[:SOME_USERS])
    weights = _gains(ks, n_items)
    expected = np.empty((len(chosen), len(weights)))
    variance = np.empty_like(expected)
    greater = np.empty(len(chosen), dtype=np.int64)
    equal = np.empty_like(greater)
    turn = max(1, _VALUES_A_TURN // n_items)
    gain = np.stack(list(weights.values()), axis=1)
    for start in range(0, len(chosen), turn):
        rows = chosen[start : start + turn]
        block = slice(start, start + len(rows))
        likely = probabilities(world, targets.inputs.take(rows))
        # numpy's partition takes a hundred times as long where most values are equal
        best = torch.topk(torch.from_numpy(likely), gain.shape[0]).values.numpy()
        expected[block] = best @ gain
        variance[block] = best @ gain**2 - expected[block] ** 2
        target = likely[np.arange(len(rows)), targets.items[rows]][:, None]
        greater[block] = (likely > target).sum(axis=1)
        # an item the user has had is no candidate, so probability 0 is level with nothing
        equal[block] = ((likely == target) & (likely > 0)).sum(axis=1) - (target[:, 0] > 0)
    everyone = len(chosen) == len(targets.items)
    spread = expected.std(axis=0) / math.sqrt(len(chosen))
    return BestPossible(
        metrics=_named(weights, expected.mean(axis=0)),
        error=_named(weights, np.zeros_like(spread) if everyone else spread),
        deviation=_named(weights, np.sqrt(variance.mean(axis=0) / len(targets.items))),
        users=targets.users[chosen],
        greater=greater,
        equal=equal,
    )


def probabilities(world: World, histories: Jagged) -> np.ndarray:
    """P(v | history) for every item: float64 [B, items], 0 for the items of the history.

    Args:
        world: the law.
        histories: B rows of at least one item, beginning with the user's first event.
    """
    first = histories.values[histories.offsets[:-1]]
    last = histories.values[histories.offsets[1:] - 1]
    likely = world.step(first % world.specification.groups, last)
    likely[histories.row_of_values(), histories.values] = 0
    total = likely.sum(axis=1, keepdims=True)
    likely /= np.where(total > 0, total, 1)
    return likely


def leak(metrics: Mapping[str, float], best: BestPossible) -> str | None:
    """Why ``metrics`` cannot be honest, in one line; None where they can.

    A metric more than 3 s.d. above the best possible means that targets were seen in training. The
    deviation is that of the best ranker's metric under the true distribution, together with the
    standard error of the best possible.
    """
    for name, value in metrics.items():
        if name not in best.metrics:
            continue
        bound = best.metrics[name]
        deviation = math.hypot(best.deviation[name], best.error[name])
        if value > bound + _DEVIATIONS * deviation:
            return (
                f"{name} {value:.4f} is more than {_DEVIATIONS} s.d. ({deviation:.4f}) above the "
                f"best possible {bound:.4f}: held-out events have leaked into training"
            )
    return None


def _gains(ks: Sequence[int], n_items: int) -> dict[str, np.ndarray]:
    """What a target at place 1, 2, .. is worth, float64 [max K] a metric."""
    place = np.arange(1, min(max(ks), n_items) + 1)
    gains: dict[str, np.ndarray] = {}
    for name, worth in (
        ("HR", np.ones(len(place))),
        ("NDCG", 1 / np.log2(place + 1)),
        ("MRR", 1 / place),
    ):
        gains |= {f"{name}@{k}": np.where(place <= k, worth, 0.0) for k in ks}
    return gains


def _named(names: Mapping[str, np.ndarray], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
