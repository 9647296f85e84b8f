"""Recommenders from interaction logs: published methods, fused losses, one honest evaluation.

    run = seqrec.train("sasrec", data="events.csv", out="runs/one")
    run.result["metrics"]["test"]["NDCG@10"]
    run.recommend({"alice": ["B001", "B017"]}, k=10)

Everything heavy is imported when it is first used, so ``seqrec --help`` does not wait for torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from seqrec.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from seqrec.api import load, recommend, resume, train
    from seqrec.comparison import compare
    from seqrec.run import Run

# Read by the OpenMP runtime when torch loads it (too late where torch is already imported). Threads
# that spin for long while they wait cost a training step four times its time on a machine that
# others use too. Threads that never spin are woken at each of a step's hundred parallel regions: a
# sixth of the step on two idle cores. A few tens of microseconds' spinning costs neither.
if "OMP_WAIT_POLICY" not in os.environ:  # whoever chose it also chose how long to spin
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Interrupted", "Run", "UsageError", "compare", "load", "recommend", "resume", "train"]

_HOMES = {
    "compare": "seqrec.comparison",
    "load": "seqrec.api",
    "recommend": "seqrec.api",
    "resume": "seqrec.api",
    "train": "seqrec.api",
    "Run": "seqrec.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seqrec' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
