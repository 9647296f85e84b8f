"""What turns a history into hidden states, by name: `encoder.name`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from seqrec.encoders.base import Encoder
    from seqrec.settings import EncoderConfig

# name -> "module:class"; a string, so that listing the encoders imports no torch
_REGISTRY = {
    "sasrec": "seqrec.encoders.sasrec:SASRec",
    "sasrec-postnorm": "seqrec.encoders.sasrec_postnorm:PostNormSASRec",
}

ENCODERS: tuple[str, ...] = tuple(_REGISTRY)


def build_encoder(n_items: int, config: EncoderConfig, generator: torch.Generator) -> Encoder:
    """The encoder `config` names.

    Args:
        n_items: N, items of the catalogue.
        config: the `[encoder]` table.
        generator: on the CPU; draws the initial weights.
    """
    module, name = _REGISTRY[config.name].split(":")
    encoder: Encoder = getattr(importlib.import_module(module), name)(n_items, config, generator)
    return encoder
