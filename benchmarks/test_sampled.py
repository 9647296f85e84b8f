"""Forward and backward of the losses against sampled negatives beside gathering them in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec_kernels import bce_loss, bpr_loss, sampled_softmax_loss

from ._common import Case, benchmarked, implementations
from ._gradients import Gradients


class Shape(NamedTuple):
    """One call: rows, negatives of each (or of all), items, width."""

    loss: str
    m: int
    n: int
    v: int
    d: int
    shared: bool = False

    def __str__(self) -> str:
        which = " shared" if self.shared else ""
        return f"{self.loss} M={self.m} N={self.n}{which} V={self.v} D={self.d}"


SHAPES = {
    "tiny": [Shape("softmax", 40, 6, 300, 16), Shape("bce", 40, 6, 300, 16, True)],
    "paper": [
        Shape("softmax", 12_800, 128, 12_101, 64),
        Shape("bce", 12_800, 128, 12_101, 64),
        Shape("bpr", 12_800, 1, 12_101, 64),
        Shape("softmax", 3200, 1024, 12_101, 64, True),
    ],
    "wide": [Shape("softmax", 12_800, 128, 12_101, 50), Shape("softmax", 3200, 128, 12_101, 256)],
    "large": [
        Shape("softmax", 3200, 128, 100_000, 64),
        Shape("softmax", 3200, 8192, 100_000, 64, True),
    ],
    "million": [Shape("softmax", 1024, 128, 1_000_000, 64)],
}

OURS: dict[str, Callable[..., Tensor]] = {
    "bce": bce_loss,
    "bpr": bpr_loss,
    "softmax": sampled_softmax_loss,
}


def eager(loss: str, q: Tensor, e: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """What a training loop writes; with the stable forms."""
    a = (q * e[positives]).sum(1, keepdim=True)
    rows = e[negatives]
    b = q @ rows.T if negatives.dim() == 1 else torch.einsum("md,mnd->mn", q, rows)
    if loss == "bce":
        return (F.softplus(-a)[:, 0] + F.softplus(b).sum(1)).mean()
    if loss == "bpr":
        return F.softplus(b - a).mean()
    return F.cross_entropy(torch.cat((a, b), 1), torch.zeros_like(positives))


def exact_gradients(
    loss: str, q: Tensor, e: Tensor, positives: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor]:
    """In float64 by torch alone, some rows at a time."""
    q, e = (t.detach().double().requires_grad_() for t in (q, e))
    step = max(1, 2**24 // (negatives.shape[-1] * e.shape[1]))
    for top in range(0, len(q), step):
        part = slice(top, top + step)
        some = negatives if negatives.dim() == 1 else negatives[part]
        share = len(positives[part]) / len(q)
        (eager(loss, q[part], e, positives[part], some) * share).backward()
    assert q.grad is not None and e.grad is not None
    return q.grad, e.grad


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Logits of the size a trained recommender has: standard deviation about 3."""
    loss, m, n, v, d, shared = shape
    torch.manual_seed(0)
    width = (3 / d**0.5) ** 0.5
    q = (torch.randn(m, d) * width).to(device, dtype).requires_grad_()
    e = (torch.randn(v, d) * width).to(device, dtype).requires_grad_()
    positives = torch.randint(v, (m,)).to(device)
    negatives = torch.randint(v, (n,) if shared else (m, n)).to(device)
    made = Gradients(q=q, e=e)

    def step(loss_of: Callable[..., Tensor], *first: Any) -> Callable[[], None]:
        return made.step(loss_of, *first, q, e, positives, negatives)

    exact = cache(lambda: exact_gradients(loss, q, e, positives, negatives))

    def gate(rival: str) -> None:
        rivals[rival]()
        made.check(exact(), rival)

    runs, rivals, left_out = implementations("sampled", q, e, step(OURS[loss]))
    rivals["eager"] = step(eager, loss)
    if compiling:
        torch.compiler.reset()  # else a second shape is compiled for any shape, or not at all
        rivals["torch.compile"] = step(torch.compile(eager, dynamic=False), loss)
    else:
        left_out["torch.compile"] = "not on tiny shapes: compiling outlasts everything else"
    ids = n if shared else m * n
    return Case(
        "sampled",
        f"forward+backward {shape}",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=6 * m * (n + 1) * d,  # the logits, and a product for each gradient
        bytes=2 * (m + v) * d * dtype.itemsize + 8 * (m + ids),
        clear=made.clear,
    )


@pytest.mark.parametrize("rival", ["ours", "seqrec blocked", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_sampled(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
