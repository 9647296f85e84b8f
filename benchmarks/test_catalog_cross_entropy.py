"""Forward and backward of the full-catalogue loss against what torch offers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common import Case
from seqrec_kernels import backend, catalog_cross_entropy

SHAPES = [(3200, 12_101, 64), (3200, 12_101, 128), (1024, 50_000, 64)]


def eager(q: Tensor, e: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(q @ e.T, y)


def chunked(q: Tensor, e: Tensor, y: Tensor) -> Tensor:
    return F.linear_cross_entropy(q, e, y, options=torch.nn.LinearCrossEntropyOptions())


def case(m: int, v: int, d: int) -> Case:
    """Logits of the size a trained recommender has: standard deviation about 3."""
    torch.manual_seed(0)
    width = (3 / d**0.5) ** 0.5
    q = (torch.randn(m, d) * width).requires_grad_()
    e = (torch.randn(v, d) * width).requires_grad_()
    y = torch.randint(v, (m,))

    def step(loss_of: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            q.grad = e.grad = None
            loss_of(q, e, y).backward()

        return run

    def gate() -> None:
        rows = slice(0, 256)
        exact_q, exact_e = (t.detach().double().requires_grad_() for t in (q, e))
        with backend("reference"):
            catalog_cross_entropy(exact_q[rows], exact_e, y[rows]).backward()
        q.grad = e.grad = None
        catalog_cross_entropy(q[rows], e, y[rows]).backward()
        for ours, exact in ((q.grad, exact_q.grad), (e.grad, exact_e.grad)):
            assert ours is not None and exact is not None
            assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()

    rivals = {
        "ours": step(catalog_cross_entropy),
        "eager": step(eager),
        "torch.compile": step(torch.compile(eager)),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch >= 2.13
        rivals["linear_cross_entropy, chunked"] = step(chunked)
    return Case(f"catalog_cross_entropy forward+backward M={m} V={v} D={d}", rivals, gate)


def cases() -> list[Case]:
    return [case(*shape) for shape in SHAPES]


@pytest.mark.parametrize(
    "rival", ["ours", "eager", "torch.compile", "linear_cross_entropy, chunked"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_catalog_cross_entropy(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(*shape)
    if rival not in made.rivals:
        pytest.skip("this torch has no linear_cross_entropy")
    made.gate()
    made.rivals[rival]()
    benchmark(made.rivals[rival])
