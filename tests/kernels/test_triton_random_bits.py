"""The triton kernel that draws words against Philox in torch."""

from __future__ import annotations

import pytest
import torch
import triton_device
from triton_device import DEVICE

from seqrec_kernels import backend
from seqrec_kernels.ops.random_bits import random_bits

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("seed", [0, 3, -1, 2**63 - 1, -(2**40) + 5])
def test_words_are_torchs(seed: int, count: int) -> None:
    asked = torch.tensor(seed, device=DEVICE)
    ours = random_bits(asked, 25, count)
    assert ours.shape == (count,) and ours.dtype == torch.int64
    with backend("reference"):
        wanted = random_bits(asked.cpu(), 25, count)
        assert count < 2 or not torch.equal(wanted, random_bits(asked.cpu(), 24, count))
    assert torch.equal(ours.cpu(), wanted)
