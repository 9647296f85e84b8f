"""Registration and backward of the contrastive losses. It knows no implementation."""

from __future__ import annotations

from seqrec_kernels.ops.contrast import blocked, native
from seqrec_kernels.ops.contrast.problem import Problem
from seqrec_kernels.ops.registration import RegisteredLoss

__all__ = ["contrast"]

contrast = RegisteredLoss(
    "contrast",
    Problem,
    wanted=("anchors", "positives", "negatives", "noise"),
    implementations={"native": native, "blocked": blocked},
)
