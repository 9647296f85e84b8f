"""The published methods, by name.

A method is one file: what it trains on (:meth:`Method.rows`, :meth:`Method.batch`), its loss, and
how it scores (:meth:`Method.queries` against :meth:`Method.items`).  Nothing else of the project
knows which method runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqrec.config import Config
    from seqrec.methods.base import Method

# name -> "module:class"; a string, so that listing the methods imports no torch
_REGISTRY = {
    "sasrec": "seqrec.methods.sasrec:SASRecMethod",
    "icsrec": "seqrec.methods.contrastive:ContrastiveMethod",
    "fenrec": "seqrec.methods.contrastive:ContrastiveMethod",
    "cl4srec": "seqrec.methods.contrastive:ContrastiveMethod",
    "duorec": "seqrec.methods.contrastive:ContrastiveMethod",
    "sasrec-sampled": "seqrec.methods.sampled:SampledMethod",
    "r2ns": "seqrec.methods.sampled:SampledMethod",
}

METHODS: tuple[str, ...] = tuple(_REGISTRY)


def build(config: Config, n_items: int) -> Method:
    """The method `config` names, with initial weights drawn from the run's seed, on the CPU."""
    import torch

    # torch's layers first fill themselves from the global stream, which is the caller's
    with torch.random.fork_rng(devices=[]):
        return method_class(config.method.name)(config, n_items)


def method_class(name: str) -> type[Method]:
    """The class of a method; to be called with a configuration and the number of items."""
    module, _, attribute = _REGISTRY[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
