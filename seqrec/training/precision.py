"""`training.precision`: what the products of a training step are formed in.

bfloat16 is torch's autocast around a step's forward: products, the fused losses' among them, read
their operands in bfloat16 and add up in float32.  Weights, their gradients, the optimizer, norms
and softmaxes stay float32, and evaluation stands outside.
"""

from __future__ import annotations

import torch


def products(precision: str, device: torch.device) -> torch.autocast:
    """A context in which products are of `precision`, "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
