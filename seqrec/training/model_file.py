"""``model.safetensors``: the weights `evaluate` and `recommend` use."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from seqrec.config import Config
from seqrec.errors import UsageError
from seqrec.files import write_atomic
from seqrec.methods import build
from seqrec.methods.base import Method

FILE = "model.safetensors"
COUNTS = "item_counts"


def write_model(directory: Path, method: Method, item_counts: Tensor, config: Config) -> None:
    """Write the weights and each item's training count (int64 [V], for the popularity fall-back).

    No time, path or host goes in, and the metadata is a single key (safetensors writes several in
    no fixed order): equal runs are equal bytes.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in method.weights().items()}
    tensors[COUNTS] = item_counts
    metadata = {"seqrec": json.dumps({"format": 1, "method": config.method.name})}
    write_atomic(directory / FILE, save(tensors, metadata))


def read_model(
    directory: Path, config: Config, n_items: int, device: torch.device
) -> tuple[Method, Tensor]:
    """The method with the run's weights, ready to score, and the training counts (on the host).

    Raises:
        UsageError: the file is missing, damaged or of another model.
    """
    path = directory / FILE
    if not path.exists():
        raise UsageError(
            "there are no weights yet", str(path), f"run `seqrec resume {directory}` first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        counts = tensors.pop(COUNTS)
        method = build(config, n_items)
        method.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise UsageError(
            f"the weights cannot be read: {_reason(error)}",
            str(path),
            f"`seqrec resume {directory}` restores them if training left its state, "
            "else train again",
        ) from error
    return method.to(device).eval(), counts


def _reason(error: Exception) -> str:
    """The first line that says something: torch heads its list of misfits with a mere title."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines[1:] if line), lines[0] if lines else type(error).__name__)
