"""Forward and backward of the full-catalogue loss against what else computes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec_kernels import catalog_cross_entropy

from ._common import Case, benchmarked, implementations
from ._gradients import Gradients

SHAPES = {
    "tiny": [(40, 300, 16)],
    "paper": [(3200, 12_101, 64), (3200, 12_101, 128), (1024, 50_000, 64)],
    "wide": [(3200, 12_101, 32), (3200, 12_101, 256)],
    "large": [(1024, 100_000, 64), (1024, 100_000, 256)],
    "million": [(256, 1_000_000, 64)],
}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, e: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(q @ e.T, y)


def peers(device: str, compiling: bool) -> tuple[dict[str, Loss], dict[str, str]]:
    """Other ways to this loss, and why some are not here."""
    found: dict[str, Loss] = {"eager": eager}
    left_out = {}
    if compiling:
        torch.compiler.reset()  # else a second shape is compiled for any shape, or not at all
        found["torch.compile"] = torch.compile(eager, dynamic=False)
    else:
        left_out["torch.compile"] = "not on tiny shapes: compiling outlasts everything else"

    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["linear_cross_entropy, chunked"] = lambda q, e, y: F.linear_cross_entropy(
            q, e, y, options=options
        )
    else:
        left_out["linear_cross_entropy, chunked"] = f"torch {torch.__version__} does not have it"

    for name, get in (("cut-cross-entropy, exact", _cut), ("Liger-Kernel", _liger)):
        if device != "cuda":
            left_out[name] = "runs on a GPU only"
            continue
        try:
            found[name] = get()
        except Exception as error:  # an import fails in many ways, of its own needs for example
            left_out[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return found, left_out


def _cut() -> Loss:
    loss = import_module("cut_cross_entropy").linear_cross_entropy
    # its default leaves out small entries of the softmax, which here are nearly all of it
    return lambda q, e, y: loss(q, e, y, filter_eps=None)


def _liger() -> Loss:
    module = import_module("liger_kernel.ops.fused_linear_cross_entropy")

    def loss(q: Tensor, e: Tensor, y: Tensor) -> Tensor:
        found: Any = module.LigerFusedLinearCrossEntropyFunction.apply(q, e, y)
        return found[0] if isinstance(found, tuple) else found

    return loss


def exact_gradients(q: Tensor, e: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """In float64 by torch alone, some rows at a time."""
    q, e = (t.detach().double().requires_grad_() for t in (q, e))
    step = max(1, 2**27 // e.shape[0])
    for part, targets in zip(q.split(step), y.split(step), strict=True):
        (F.cross_entropy(part @ e.T, targets, reduction="sum") / y.shape[0]).backward()
    assert q.grad is not None and e.grad is not None
    return q.grad, e.grad


def case(
    shape: tuple[int, int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Logits of the size a trained recommender has: standard deviation about 3."""
    m, v, d = shape
    torch.manual_seed(0)
    width = (3 / d**0.5) ** 0.5
    q = (torch.randn(m, d) * width).to(device, dtype).requires_grad_()
    e = (torch.randn(v, d) * width).to(device, dtype).requires_grad_()
    y = torch.randint(v, (m,)).to(device)
    made = Gradients(q=q, e=e)
    exact = cache(lambda: exact_gradients(q, e, y))

    def gate(rival: str) -> None:
        rivals[rival]()
        made.check(exact(), rival)

    runs, rivals, left_out = implementations(
        "catalog_cross_entropy", q, e, made.step(catalog_cross_entropy, q, e, y)
    )
    others, absent = peers(device, compiling)
    rivals |= {name: made.step(loss, q, e, y) for name, loss in others.items()}
    return Case(
        "catalog_cross_entropy",
        f"forward+backward M={m} V={v} D={d}",
        dtype,
        runs,
        rivals,
        left_out | absent,
        gate,
        operations=6 * m * v * d,  # the logits, and a product for each gradient
        bytes=2 * (m + v) * d * dtype.itemsize + 8 * m,
        clear=made.clear,
    )


@pytest.mark.parametrize(
    "rival",
    ["ours", "seqrec blocked", "eager", "torch.compile", "linear_cross_entropy, chunked"],
)
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_catalog_cross_entropy(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
