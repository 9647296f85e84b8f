"""Every kind of step that a graph can replay, on a little log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from little import SETTINGS, split

from seqrec.config import Config, load_config
from seqrec.methods import build
from seqrec.training.progress import Progress
from seqrec.training.trainer import Trainer

SPLIT = split()
WARMUP = 2

#: name -> method, the epoch its steps are of, and settings
STEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sasrec": ("sasrec", 0, {}),
    "sasrec-prefixes": ("sasrec", 0, {"method.rows": "prefixes"}),
    "sasrec-postnorm": ("sasrec", 0, {"encoder.name": "sasrec-postnorm"}),
    "icsrec": ("icsrec", 0, {"method.clusters": 4}),
    "icsrec-last": ("icsrec", 0, {"method.clusters": 4, "method.positive": "last"}),
    "fenrec-warmup": ("fenrec", 0, {"method.clusters": 4}),
    "fenrec-main": ("fenrec", WARMUP, {"method.clusters": 4, "method.mix_spread": 0.1}),
    "fenrec-paper": (
        "fenrec",
        WARMUP,
        {
            "encoder.name": "sasrec-postnorm",
            "method.clusters": 4,
            "method.contrast_form": "paper",
            "method.label_place": "first",
        },
    ),
    "cl4srec": ("cl4srec", 0, {}),
    "duorec": ("duorec", 0, {}),
    "duorec-dropout": ("duorec", 0, {"method.positive": "dropout"}),
    "sasrec-sampled": ("sasrec-sampled", 0, {"method.loss": "softmax", "negatives.count": 2}),
    "sasrec-popular": (
        "sasrec-sampled",
        0,
        {
            "method.rows": "prefixes",
            "method.loss": "bpr",
            "negatives.sampler": "popularity",
            "negatives.exclude": "sequence",
        },
    ),
    "sasrec-mixgcf": (
        "sasrec-sampled",
        0,
        {"negatives.sampler": "mixgcf+", "negatives.pool": 9, "negatives.top_m": 4},
    ),
    "r2ns-warmup": ("r2ns", 0, {}),
    "r2ns-main": ("r2ns", WARMUP, {"negatives.recall": 4, "negatives.pool": 6}),
    "r2ns-published": (
        "r2ns",
        WARMUP,
        {"method.rows": "positions", "negatives.form": "published", "negatives.recall": 9},
    ),
}


def configured(name: str, **sets: Any) -> Config:
    method, _, asked = STEPS[name]
    asked = {**SETTINGS, **asked, **{key.replace("__", "."): x for key, x in sets.items()}}
    if method in ("fenrec", "r2ns"):
        asked["method.warmup_epochs"] = WARMUP
    asked.setdefault("training.capture", "fixed")
    return load_config(method, sets=asked, flags={"data.path": "-"})


def trainer(config: Config, directory: Path, device: str | torch.device = "cpu") -> Trainer:
    """Ready for its first step; weights far from where they began."""
    directory.mkdir(exist_ok=True)
    method = build(config, SPLIT.n_items)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    made = Trainer(directory, config, SPLIT, method, torch.device(device), Progress(False))
    made.method.begin_epoch(made.store, 0, 0)
    return made
