"""Registration and backward of the catalogue cross-entropy. It knows no implementation."""

from __future__ import annotations

from seqrec_kernels.ops.catalog_cross_entropy import blocked, native
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem
from seqrec_kernels.ops.registration import RegisteredLoss
from seqrec_kernels.triton_loader import TritonKernels

__all__ = ["catalog_cross_entropy"]

catalog_cross_entropy = RegisteredLoss(
    "catalog_cross_entropy",
    Problem,
    wanted=("queries", "items", "item_bias"),
    implementations={
        "native": native,
        "triton": TritonKernels("catalog_cross_entropy"),
        "blocked": blocked,
    },
)
