"""What the triton kernels of the catalogue cross-entropy are given, and what they share."""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.ops.catalog_cross_entropy.labels import Labels, Problem, labels_of

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2.0))
# what stands for a bias of -inf, finite so that a row whose items are all taken out has a softmax
_OUT = tl.constexpr(-1.7e38)


class Operands(NamedTuple):
    """What every kernel is given: tensors as kernels read them, and the numbers beside them."""

    q: Tensor  # [M, D], rows dense
    e: Tensor  # [V, D], each row in one piece
    bias: Tensor | None  # [V]
    first: int
    scale: float  # 1 / temperature
    scale2: float  # log2(e) / temperature, rounded once
    precision: str

    @classmethod
    def of(cls, problem: Problem) -> Operands:
        bias = problem.item_bias
        # this setting follows torch.set_float32_matmul_precision and its successors alike
        fast = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return cls(
            tiles.dense(problem.queries),
            tiles.dense_rows(problem.items),
            None if bias is None else bias.detach().contiguous(),
            problem.first_item,
            1.0 / problem.temperature,
            LOG2E.value / problem.temperature,
            "tf32" if fast else "tf32x3",
        )

    def tile(self, kind: str) -> tiles.Tile:
        return tiles.tile(kind, self.q.dtype, self.q.shape[1], tiles.capability(self.q))

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Compile-time arguments and launch options shared by the kernels."""
        return {
            "STRIDE": self.e.stride(0),
            "D": self.q.shape[1],
            "BD": tile.depth,
            "PRECISION": self.precision,
            "HAS_BIAS": self.bias is not None,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        }


def dense_labels(problem: Problem) -> Labels:
    """The labels of ``problem`` as kernels read them, rows one after another."""
    labels = labels_of(problem, torch.float32)
    columns, weights = labels.columns.contiguous(), labels.weights.contiguous()
    return labels._replace(columns=columns, weights=weights)


@triton.jit
def shift(bias, i_v, V, BV: tl.constexpr, HAS_BIAS: tl.constexpr):
    """What is added to each item's base-2 logit, -inf past the last item: ``[BV]``."""
    o_v = i_v + tl.arange(0, BV)
    b_shift = tl.zeros([BV], dtype=tl.float32)
    if HAS_BIAS:
        b_shift = tl.load(bias + o_v, mask=o_v < V, other=0.0)  # [BV]
        # a NaN stays one
        b_shift = tl.where(b_shift < _OUT, _OUT, b_shift) * LOG2E
    return tl.where(o_v < V, b_shift, -float("inf"))
