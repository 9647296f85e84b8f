"""Registration and backward of the sampled losses. It knows no implementation."""

from __future__ import annotations

from seqrec_kernels.ops.registration import RegisteredLoss
from seqrec_kernels.ops.sampled import blocked, native
from seqrec_kernels.ops.sampled.problem import Problem

__all__ = ["sampled"]

sampled = RegisteredLoss(
    "sampled",
    Problem,
    wanted=("queries", "items", "log_q"),
    implementations={"native": native, "blocked": blocked},
)
