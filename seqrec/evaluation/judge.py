"""A trained method and the two rulers on the held-out targets of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from seqrec.config import Config
from seqrec.data.split import Split
from seqrec.evaluation.ranking import Evaluator, Ranks
from seqrec.evaluation.rulers import ItemToItem, Popularity

if TYPE_CHECKING:
    from seqrec.methods.base import Method

PARTS = ("valid", "test")


def judge(
    method: Method, config: Config, split: Split, device: torch.device, rules: Sequence[str]
) -> dict[str, dict[str, Ranks]]:
    """Ranks of the method by seen rule, then by "valid" and "test"."""
    found: dict[str, dict[str, Ranks]] = {rule: {} for rule in rules}
    for part in PARTS:
        evaluator = Evaluator(
            getattr(split, part),
            config.encoder.max_length,
            device,
            config.evaluation.batch,
        )
        for rule, ranks in evaluator.ranks(method, rules).items():
            found[rule][part] = ranks
    return found


def judge_rulers(split: Split, rule: str) -> dict[str, dict[str, Ranks]]:
    """Ranks of the counting baselines under one seen rule, by name, then by "valid" and "test"."""
    found: dict[str, dict[str, Ranks]] = {}
    for ruler in (Popularity(split.train, split.n_items), ItemToItem(split.train, split.n_items)):
        found[ruler.name] = {}
        for part in PARTS:
            targets = getattr(split, part)
            found[ruler.name][part] = Ranks(targets.users, *ruler.rank(targets, rule))
    return found


def metrics_of(ranks: dict[str, Ranks], config: Config, ties: str) -> dict[str, dict[str, float]]:
    """Metrics by "valid" and "test"."""
    return {part: found.metrics(config.evaluation.ks, ties) for part, found in ranks.items()}
