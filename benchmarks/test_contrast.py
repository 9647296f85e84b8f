"""Forward and backward of the contrastive loss of a FENRec step against what else computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec_kernels import hard_negative_info_nce

from ._common import Case, benchmarked, implementations
from ._gradients import Gradients

# pairs of views, noise rows, width; rows are contrasted with all rows of both views
SHAPES = {
    "tiny": [(20, 24, 16)],
    "paper": [(256, 512, 64), (1024, 1024, 64)],
    "wide": [(256, 512, 32), (256, 512, 256)],
    "large": [(4096, 4096, 64)],
}

FOCAL, MARGIN, MIX, WEIGHT = 8.0, 0.2, 0.4, 0.1  # of the published runs

# anchors, positives, negatives, noise, ids of anchors, ids of negatives
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def focal(x: Tensor, margin: float = MARGIN) -> Tensor:
    return x * (torch.tanh(x / FOCAL) + margin)


def eager(a: Tensor, p: Tensor, n: Tensor, noise: Tensor, ids: Tensor, others: Tensor) -> Tensor:
    """The closed form on ``[R, K]`` matrices, none of them computed twice that need not be."""
    left_out = ids[:, None] == others
    own = focal((a * p).sum(1, keepdim=True), 0.0)
    near = focal(a @ n.T).masked_fill(left_out, -torch.inf)
    with torch.no_grad():
        length, other = a.norm(dim=1, keepdim=True), n.norm(dim=1)
        still = a @ n.T
        inverse = (still * (2 * MIX * (1 - MIX) / length) / other).add_(MIX**2 + (1 - MIX) ** 2)
        inverse = inverse.rsqrt_()
        along = inverse * (MIX / length * other)
        inverse *= 1 - MIX
    # the mixed negatives stand still: their similarity is linear in the anchor
    u = along * (a * a.detach()).sum(1, keepdim=True) + inverse * (a @ n.detach().T)
    mixed = (focal(u) + math.log(WEIGHT)).masked_fill(left_out, -torch.inf)
    logits = torch.cat((own, near, focal(a @ noise.T), mixed), 1)
    first = torch.zeros(len(a), dtype=torch.int64, device=a.device)
    return F.cross_entropy(logits, first)


def dense(a: Tensor, p: Tensor, n: Tensor, noise: Tensor, ids: Tensor, others: Tensor) -> Tensor:
    """The published form, through a mixed vector for every pair."""
    left_out = ids[:, None] == others
    own = focal((a * p).sum(1, keepdim=True), 0.0)
    near = focal(a @ n.T).masked_fill(left_out, -torch.inf)
    length, other = a.norm(dim=1, keepdim=True), n.norm(dim=1, keepdim=True)
    hard = MIX * (a / length)[:, None] + (1 - MIX) * (n / other)  # [R, K, D]
    hard = hard / hard.norm(dim=2, keepdim=True) * other
    u = (a[:, None] * hard.detach()).sum(2)
    mixed = (focal(u) + math.log(WEIGHT)).masked_fill(left_out, -torch.inf)
    logits = torch.cat((own, near, focal(a @ noise.T), mixed), 1)
    return (logits.logsumexp(1) - own[:, 0]).mean()


def ours(a: Tensor, p: Tensor, n: Tensor, noise: Tensor, ids: Tensor, others: Tensor) -> Tensor:
    return hard_negative_info_nce(
        a, p, n, noise=noise, anchor_ids=ids, negative_ids=others,
        focal_scale=FOCAL, margin=MARGIN, mix=MIX, mix_weight=WEIGHT,
    )  # fmt: skip


def peers(rows: int, width: int, compiling: bool) -> tuple[dict[str, Loss], dict[str, str]]:
    """Other ways to this loss, and why some are not here."""
    found: dict[str, Loss] = {"eager": eager}
    left_out = {}
    if compiling:
        torch.compiler.reset()  # else a second shape is compiled for any shape, or not at all
        found["torch.compile"] = torch.compile(eager, dynamic=False)
    else:
        left_out["torch.compile"] = "not on tiny shapes: compiling outlasts everything else"
    gigabytes = 4 * rows * rows * width / 1e9
    if gigabytes < 1:
        found["as published"] = dense
    else:
        left_out["as published"] = f"each of its vectors of pairs would be {gigabytes:.1f} GB"
    return found, left_out


def exact_gradient(z: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
    """In float64 by torch alone, some rows at a time."""
    z, noise = z.detach().double().requires_grad_(), noise.double()
    rows = z.shape[0]
    step = max(1, 2**22 // rows)
    for top in range(0, rows, step):
        part = slice(top, top + step)
        loss = eager(z[part], partners(z)[part], z, noise, labels[part], labels)
        (loss * (len(labels[part]) / rows)).backward()
    assert z.grad is not None
    return z.grad


def partners(z: Tensor) -> Tensor:
    """The other view of every row."""
    first, second = z.chunk(2)
    return torch.cat((second, first))


def case(
    shape: tuple[int, int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Similarities of standard deviation 3, above 0 between the two views of a row."""
    pairs, extra, d = shape
    rows = 2 * pairs
    torch.manual_seed(0)
    width = (3 / d**0.5) ** 0.5
    first, other = torch.randn(2, pairs, d) * width
    z = torch.cat((first, 0.7 * (first + other))).to(device, dtype).requires_grad_()
    noise = torch.randn(extra, d).to(device, dtype)
    labels = torch.randint(pairs, (pairs,)).repeat(2).to(device)
    made = Gradients(z=z)

    def step(loss_of: Loss) -> Callable[[], None]:
        return made.step(lambda: loss_of(z, partners(z), z, noise, labels, labels))

    exact = cache(lambda: exact_gradient(z, noise, labels))

    def gate(rival: str) -> None:
        rivals[rival]()
        made.check([exact()], rival)

    runs, rivals, left_out = implementations("contrast", z, z, step(ours))
    others, absent = peers(rows, d, compiling)
    rivals |= {name: step(loss) for name, loss in others.items()}
    return Case(
        "contrast",
        f"forward+backward B={pairs} noise={extra} D={d}",
        dtype,
        runs,
        rivals,
        left_out | absent,
        gate,
        # similarities, the anchors' gradients, the negatives'
        operations=2 * rows * d * (2 * (rows + extra) + rows),
        bytes=(2 * rows + extra) * d * dtype.itemsize + 8 * rows,
        clear=made.clear,
    )


@pytest.mark.parametrize(
    "rival", ["ours", "seqrec blocked", "eager", "torch.compile", "as published"]
)
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_contrast(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
