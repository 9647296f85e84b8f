"""What a training would do, in words: ``--dry-run``."""

from __future__ import annotations

import math

import torch

from seqrec.config import Config
from seqrec.data.log import InteractionLog
from seqrec.data.split import Split
from seqrec.data.store import SequenceStore
from seqrec.methods import build


def plan(config: Config, log: InteractionLog, split: Split, device: torch.device) -> str:
    """The resolved configuration, what would be trained on, and what it takes."""
    method = build(config, split.n_items)
    rows = method.rows(SequenceStore(split.train, "cpu"))
    steps = math.ceil(rows / config.training.batch)
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    # weights, their gradients and Adam's two moments; the epoch's data beside them
    memory = 4 * weights + 8 * len(split.train.values)
    return "\n".join(
        [
            config.to_toml(),
            f"data        {log.n_users:,} users, {log.n_items:,} items, "
            f"{log.n_interactions:,} interactions ({log.format})",
            f"evaluated   {len(split.test.items):,} users, {split.users_not_evaluated:,} not",
            f"training    {rows:,} rows, {steps:,} steps an epoch, "
            f"{config.training.epochs} epochs at most, on {device}",
            f"model       {sum(p.numel() for p in method.parameters()):,} weights; weights, "
            f"gradients, optimizer and data take {memory / 2**20:,.0f} MiB",
        ]
    )
