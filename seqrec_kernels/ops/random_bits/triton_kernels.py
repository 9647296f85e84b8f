"""Philox words on the GPU: a counter a lane, four words each, written as they lie in memory."""

# mypy: disable-error-code="no-untyped-def"
# (device functions take blocks and pointers, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_kernels import tiles
from seqrec_kernels.triton_loader import unsupported

__all__ = ["forward", "unsupported"]

_COUNTERS = 1024  # of a program


@triton.jit(do_not_specialize=["n"])
def bits_kernel(seed, out, n, STREAM: tl.constexpr, BN: tl.constexpr):
    """The four words of the counters ``0 .. n - 1``, one after the other."""
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    b_c0 = o_n.to(tl.uint32)
    b_0, b_1, b_2, b_3 = tl.philox(tl.load(seed), b_c0, b_c0 * 0, 0, STREAM)
    p_n = out + 4 * o_n  # [BN]
    m_n = o_n < n
    tl.store(p_n, b_0.to(tl.int32, bitcast=True), mask=m_n)
    tl.store(p_n + 1, b_1.to(tl.int32, bitcast=True), mask=m_n)
    tl.store(p_n + 2, b_2.to(tl.int32, bitcast=True), mask=m_n)
    tl.store(p_n + 3, b_3.to(tl.int32, bitcast=True), mask=m_n)


def forward(seed: Tensor, stream: int, count: int) -> Tensor:
    """int64 ``[count]``."""
    counters = (count + 1) // 2
    out = torch.empty(2 * counters, dtype=torch.int64, device=seed.device)
    if counters:
        with tiles.on_device(seed):
            bits_kernel[(triton.cdiv(counters, _COUNTERS),)](
                seed, out.view(torch.int32), counters, STREAM=stream, BN=_COUNTERS,
                num_warps=4, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
    return out[:count]
