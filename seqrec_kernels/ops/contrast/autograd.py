"""Registration and backward of the contrastive losses. It knows no implementation."""

from __future__ import annotations

from seqrec_kernels.ops.contrast import blocked, native
from seqrec_kernels.ops.contrast.problem import Problem
from seqrec_kernels.ops.registration import RegisteredLoss
from seqrec_kernels.triton_loader import TritonKernels

__all__ = ["contrast"]

contrast = RegisteredLoss(
    "contrast",
    Problem,
    wanted=("anchors", "positives", "negatives", "noise"),
    implementations={
        "native": native,
        "triton": TritonKernels("contrast"),
        "blocked": blocked,
    },
)
