"""What the tests of the encoder's C++ compare with: masks by definition, gradients in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.encoders import fused
from seqrec_kernels import philox

STREAM_DROPOUT = 3


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factors(rows: int, columns: int, p: float, source: torch.Generator) -> Tensor:
    """[rows, columns] of 0 and 1 / (share kept), by the words of Philox."""
    seed, dropped = fused.draws(p, source)
    c = torch.arange(columns)
    words = torch.stack(philox.words(seed, STREAM_DROPOUT, torch.arange(rows)[:, None], c // 8))
    word = words.gather(0, (c // 2 % 4).expand(1, rows, columns))[0]
    bits = (word >> (16 * (c % 2))) & 0xFFFF
    return (bits >= dropped).double() * (65536 / (65536 - dropped))


def assert_close(mine: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(mine.double(), wanted.double(), rtol=2e-5, atol=2e-5)


def assert_gradients(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    """Of a random upstream gradient, to all inputs; each within its largest number."""
    grad = torch.randn(found.shape, generator=generator(9))
    expected = torch.autograd.grad(wanted, inputs, grad.double(), retain_graph=True)
    mine = torch.autograd.grad(found, inputs, grad, retain_graph=True)
    for one, other in zip(mine, expected, strict=True):
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        assert_close(one / scale, other / scale)
