"""Registration and backward of jagged attention. It knows no implementation."""

from __future__ import annotations

from torch import Tensor

from seqrec_kernels.ops.jagged_attention import blocked, native
from seqrec_kernels.ops.jagged_attention.problem import Problem
from seqrec_kernels.ops.registration import Registered
from seqrec_kernels.triton_loader import TritonKernels

__all__ = ["jagged_attention"]


def _output(problem: Problem) -> Tensor:
    return problem.queries.new_empty(problem.queries.shape[0], problem.width)


jagged_attention = Registered(
    "jagged_attention",
    Problem,
    wanted=("queries", "keys", "values"),
    implementations={
        "native": native,
        "triton": TritonKernels("jagged_attention"),
        "blocked": blocked,
    },
    output=_output,
    keeps_output=True,
)
