"""Little inputs of the operators that rank, such that an oracle can score them on its own."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def whole(rows: int, width: int) -> Tensor:
    """Small whole numbers: every product is exact, so an oracle may score on its own; many ties."""
    return torch.randint(-2, 3, (rows, width)).float()


def random_seen(batch: int, items: int, most: int = 60) -> list[list[int]]:
    """Lists in any order, with repeats and empty ones among them."""
    return [[random.randrange(items) for _ in range(random.randrange(most))] for _ in range(batch)]
