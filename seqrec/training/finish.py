"""The end of a run: the selected weights meet the test targets, once, and the result is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from seqrec.config import Config
from seqrec.data.best_possible import best_possible, leak
from seqrec.data.log import InteractionLog
from seqrec.data.split import Split
from seqrec.evaluation.judge import judge, judge_rulers, metrics_of
from seqrec.evaluation.protocol import protocol_card
from seqrec.evaluation.ranking import Ranks
from seqrec.evaluation.rulers import SEEN_RULES
from seqrec.provenance import commit, hardware, versions
from seqrec.training.model_file import read_model
from seqrec.training.state import Counters


def judged(
    directory: Path,
    config: Config,
    log: InteractionLog,
    split: Split,
    counters: Counters,
    device: torch.device,
) -> dict[str, Any]:
    """Rank valid and test with the best weights, write ``ranks/``, and give ``result.json``.

    The other seen rules go into ``also``: the same weights, another protocol.
    """
    begun = time.perf_counter()
    method, _ = read_model(directory, config, split.n_items, device)
    seen, ties = config.evaluation.seen, config.evaluation.ties
    ranks = judge(method, config, split, device, (seen, *(r for r in SEEN_RULES if r != seen)))
    for part, found in ranks[seen].items():
        found.save(directory / "ranks" / f"{part}.npz")
    rulers = judge_rulers(split, seen)
    result: dict[str, Any] = {
        "metrics": metrics_of(ranks[seen], config, ties),
        "protocol": protocol_card(config, split),
        "also": [
            {
                "protocol": protocol_card(config, split, seen=rule),
                "metrics": metrics_of(found, config, ties),
            }
            for rule, found in ranks.items()
            if rule != seen
        ],
        "baselines": {name: metrics_of(found, config, ties) for name, found in rulers.items()},
        "data": {
            "file": Path(log.file).name,  # the place is in config.toml; sha256 says which
            "format": log.format,
            "users": log.n_users,
            "items": log.n_items,
            "interactions": log.n_interactions,
            "sha256": config.data.sha256,
        },
        "method": config.method.name,
        "preset": config.preset.name or None,
        "preset_changed": config.changed(),
        "seed": config.training.seed,
        "epochs_run": counters.epoch,
        "best_epoch": counters.best_epoch,
        "steps": counters.step,
        "parameters": sum(p.numel() for p in method.parameters()),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(device),
    }
    if log.format == "synthetic":
        result |= _against_the_best(config, split, ranks[seen]["test"])
    result["timing"] = {
        "train_seconds": round(counters.train_seconds, 3),
        "evaluate_seconds": round(time.perf_counter() - begun, 3),
    }
    return result


def _against_the_best(config: Config, split: Split, reached: Ranks) -> dict[str, Any]:
    """What only a synthetic log can tell: how far from the best possible the figures are."""
    best = best_possible(config.data.path, split.test, config.evaluation.ks)
    oracle = Ranks(best.users, best.greater, best.equal)
    return {
        "best_possible": {"test": best.metrics},
        "best_possible_error": {"test": best.error},
        "oracle": {"test": oracle.metrics(config.evaluation.ks, config.evaluation.ties)},
        # luck with ties must not look like a leak
        "leak": leak(reached.metrics(config.evaluation.ks, "mean"), best),
    }
