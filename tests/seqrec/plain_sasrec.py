"""The oracle of SASRec: padded, dense, float64, from the published formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from seqrec.methods.sasrec import SASRecMethod


class Plain:
    """The encoder on one padded matrix, from a method's weights in float64."""

    def __init__(self, method: SASRecMethod, heads: int) -> None:
        self.heads = heads
        self.weights = {
            name: p.detach().double().requires_grad_() for name, p in method.named_parameters()
        }

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def hidden(self, rows: list[list[int]]) -> list[Tensor]:
        """[n, D] for each row; rows are at most max_length long."""
        table, places = self.weights["encoder.table"], self.weights["encoder.places"]
        width, dim = max(map(len, rows)), table.shape[1]
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        real = torch.tensor([[place < len(row) for place in range(width)] for row in rows])
        x = math.sqrt(dim) * table[padded] + places[:width]
        allowed = torch.ones(width, width).tril().bool() & real[:, None, :]
        allowed = allowed | torch.eye(width).bool()  # a padded place sees itself: no empty softmax
        for layer in itertools.takewhile(
            lambda n: f"encoder.layers.{n}.attention.input.weight" in self.weights,
            itertools.count(),
        ):
            name = f"encoder.layers.{layer}"
            q, k, v = self.linear(
                self.norm(x, f"{name}.attention_norm"), f"{name}.attention.input"
            ).split(dim, -1)
            heads = []
            for part in range(self.heads):
                of = slice(part * dim // self.heads, (part + 1) * dim // self.heads)
                scores = q[..., of] @ k[..., of].mT / math.sqrt(dim // self.heads)
                heads.append(scores.masked_fill(~allowed, -1e300).softmax(-1) @ v[..., of])
            x = x + self.linear(torch.cat(heads, -1), f"{name}.attention.output")
            inner = self.linear(
                self.norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward.first"
            )
            x = x + self.linear(inner.clamp(min=0), f"{name}.feed_forward.second")
        x = self.norm(x, "encoder.norm")
        return [x[row, : len(items)] for row, items in enumerate(rows)]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True)
        )


def positions(rows: list[list[int]], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Input and targets of each user by hand: the last `length` next-item pairs."""
    for row in rows:
        pairs = list(itertools.pairwise(row))[-length:]
        if pairs:
            yield [a for a, _ in pairs], [b for _, b in pairs]


def prefixes(rows: list[list[int]], length: int) -> Iterator[tuple[list[int], int]]:
    """Every prefix of every user, the last `length` items of it, and what follows."""
    for row in rows:
        for end in range(1, len(row)):
            yield row[max(0, end - length) : end], row[end]
