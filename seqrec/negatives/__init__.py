"""Samplers of negatives, by name: `negatives.sampler`.

A sampler is one file: a :class:`~seqrec.negatives.base.Sampler`, its name here, and its keys in
`settings.py`.  Every method with a sampled loss takes every sampler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqrec.negatives.base import Sampler
    from seqrec.negatives.settings import NegativesConfig

# name -> "module:class"; a string, so that listing the samplers imports no torch
_REGISTRY = {
    "uniform": "seqrec.negatives.uniform:Uniform",
    "popularity": "seqrec.negatives.popularity:Popularity",
    "dns": "seqrec.negatives.dns:DNS",
    "dns+": "seqrec.negatives.dns:DNS",
    "mixgcf": "seqrec.negatives.mixgcf:MixGCF",
    "mixgcf+": "seqrec.negatives.mixgcf:MixGCF",
    "r2ns": "seqrec.negatives.r2ns:R2NS",
}

SAMPLERS: tuple[str, ...] = tuple(_REGISTRY)


def build_sampler(settings: NegativesConfig, warmup_epochs: int = 0) -> Sampler:
    """The sampler that `settings` names.

    Args:
        settings: the `[negatives]` table.
        warmup_epochs: epochs before this sampler is first asked.
    """
    module, name = _REGISTRY[settings.sampler].split(":")
    sampler: Sampler = getattr(importlib.import_module(module), name)(settings, warmup_epochs)
    return sampler
