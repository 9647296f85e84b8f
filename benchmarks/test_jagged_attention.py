"""Forward and backward of jagged attention beside torch's attention on padded rectangles."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec_kernels import backend, jagged_attention

from ._common import Case, benchmarked, implementations, is_ours
from ._gradients import TOLERANCE, Gradients


class Shape(NamedTuple):
    """A batch: sequences, their mean and greatest length, width, heads, dropout."""

    b: int
    mean: int
    longest: int
    d: int
    h: int
    dropout: float = 0.0

    def __str__(self) -> str:
        drops = f" dropout={self.dropout:g}" if self.dropout else ""
        return f"B={self.b} L={self.mean} of {self.longest} D={self.d} heads={self.h}{drops}"


# lengths as in Beauty (a mean of 7 items and a place to predict), its prefixes, and ml-1m
SHAPES = {
    "tiny": [Shape(8, 4, 9, 16, 2), Shape(8, 4, 9, 16, 2, 0.5)],
    "paper": [Shape(256, 7, 50, 64, 2), Shape(256, 7, 50, 64, 2, 0.5), Shape(128, 120, 200, 64, 2)],
    "wide": [Shape(256, 7, 50, 50, 1), Shape(256, 7, 50, 256, 4)],
    "large": [Shape(1024, 7, 50, 64, 2), Shape(32, 300, 512, 64, 2)],
}

ALLOWED = TOLERANCE | {("cuda", torch.bfloat16): (2e-2, 5e-2)}


def lengths_of(shape: Shape) -> Tensor:
    """At least one; exponential, as logs are, and cut."""
    drawn = 1 + torch.empty(shape.b).exponential_(1 / shape.mean).long()
    return drawn.clamp(max=shape.longest)


class Padded:
    """The attention of a batch in torch: rectangles, filled from the left, of some rows each."""

    def __init__(self, lengths: Tensor, heads: int, device: str, groups: list[Tensor]) -> None:
        self.heads = heads
        starts = lengths.cumsum(0) - lengths
        tokens, slots, self.shapes = [], torch.empty(int(lengths.sum()), dtype=torch.int64), []
        filled = 0
        for rows in groups:
            width = int(lengths[rows].max())
            column = torch.arange(width)
            real = column < lengths[rows, None]
            token = torch.where(real, starts[rows, None] + column, 0)
            slot = filled + torch.arange(token.numel()).view_as(token)
            slots[token[real]] = slot[real]
            tokens.append(token.flatten())
            self.shapes.append((len(rows), width))
            filled += token.numel()
        self.tokens, self.slots = torch.cat(tokens).to(device), slots.to(device)

    def __call__(self, qkv: Tensor, dropout: float) -> Tensor:
        parts = qkv[self.tokens].split([rows * width for rows, width in self.shapes])
        found = []
        for part, (rows, width) in zip(parts, self.shapes, strict=True):
            q, k, v = part.view(rows, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            found.append(out.transpose(1, 2).reshape(rows * width, -1))
        return torch.cat(found)[self.slots]


def in_groups(lengths: Tensor) -> list[Tensor]:
    """Rows of similar length: under a third of the slots are padding."""
    order, edges = torch.argsort(lengths, stable=True), [4]
    while edges[-1] < int(lengths.max()):
        edges.append(edges[-1] + edges[-1] // 2)
    cuts = torch.searchsorted(lengths[order], torch.tensor(edges), right=True)
    return [rows for rows in order.tensor_split(cuts) if rows.numel()]


def exact_gradient(
    qkv: Tensor, grad: Tensor, offsets: Tensor, heads: int, dropout: float
) -> Tensor:
    """In float64 by the reference; a few sequences at a time where no mask depends on the place."""
    qkv = qkv.detach().double().requires_grad_()
    bounds = offsets.tolist()
    step = len(bounds) if dropout else 8
    with backend("reference"):
        for first in range(0, len(bounds) - 1, step):
            some = offsets[first : first + step + 1]
            rows = slice(int(some[0]), int(some[-1]))
            out = jagged_attention(
                qkv[rows], None, None, some - some[0], heads=heads, dropout=dropout, seed=3
            )
            out.backward(grad[rows].double())
    assert qkv.grad is not None
    return qkv.grad


def case(
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    """Queries, keys and values as one projection gives them; dropout as in training."""
    torch.manual_seed(0)
    lengths = lengths_of(shape)
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).to(device)
    tokens, width, heads = int(lengths.sum()), shape.d, shape.h
    qkv = torch.randn(tokens, 3 * width).to(device, dtype).requires_grad_()
    grad = torch.randn(tokens, width).to(device, dtype)
    made = Gradients(qkv=qkv)

    def step(attention: Callable[[float], Tensor], dropout: float) -> Callable[[], None]:
        return made.step(attention, dropout, upstream=grad)

    def ours(dropout: float) -> Tensor:
        return jagged_attention(
            qkv, None, None, offsets, heads=heads, dropout=dropout, seed=3,
            max_length=shape.longest,
        )  # fmt: skip

    exact = cache(lambda dropout: exact_gradient(qkv, grad, offsets, heads, dropout))

    def gate(rival: str) -> None:
        mine = is_ours(rival)
        dropout = shape.dropout if mine else 0.0  # a peer draws masks of its own
        if mine:
            rivals[rival]()
        else:
            step(peers[rival], dropout)()
        made.check([exact(dropout)], rival, ALLOWED)

    one = Padded(lengths, heads, device, [torch.arange(shape.b)])
    several = Padded(lengths, heads, device, in_groups(lengths))
    peers = {"padded": lambda p: one(qkv, p), "in groups": lambda p: several(qkv, p)}
    head = qkv[:, : width // heads]
    runs, rivals, left_out = implementations(
        "jagged_attention", head, head, step(ours, shape.dropout)
    )
    if compiling:
        torch.compiler.reset()  # else a second shape is compiled for any shape, or not at all
        compiled = torch.compile(one, dynamic=False)
        peers["torch.compile"] = lambda p: compiled(qkv, p)
    else:
        left_out["torch.compile"] = "not on tiny shapes: compiling outlasts everything else"
    rivals |= {name: step(peer, shape.dropout) for name, peer in peers.items()}
    pairs = int((lengths * (lengths + 1)).sum()) // 2
    return Case(
        "jagged_attention",
        f"forward+backward {shape}",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=12 * pairs * width,  # two products forward, four backward
        bytes=8 * tokens * width * dtype.itemsize,
        clear=made.clear,
    )


@pytest.mark.parametrize("rival", ["ours", "seqrec blocked", "padded", "in groups"])
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_jagged_attention(benchmark: Callable[..., object], shape: Shape, rival: str) -> None:
    made = case(shape, compiling=False)
    benchmarked(benchmark, made, rival)
