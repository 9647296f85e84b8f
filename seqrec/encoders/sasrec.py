"""The SASRec encoder (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018).

A causal Transformer over item embeddings: x = sqrt(D) E[item] + P[place], then layers of

    x <- x + dropout(attention(norm(x)))        x <- x + feed_forward(norm(x))

and a last norm.  Normalising before each sub-layer is the form that trains without a warm-up; the
scores of all items are the products of an output with the same table E.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.data.store import Sequences
from seqrec.draws import Randomness
from seqrec.encoders import fused, products
from seqrec.encoders.base import Encoder, TransformerLayer
from seqrec.encoders.layers import CausalSelfAttention, FeedForward, dropout
from seqrec.encoders.layout import Layout
from seqrec.settings import EncoderConfig


class SASRec(Encoder):
    """The pre-norm Transformer; places are counted from the start of a sequence.

    Args:
        n_items, config: as in :class:`Encoder`.
        generator: on the CPU; draws the initial weights.
    """

    def __init__(self, n_items: int, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__(n_items, config)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        """Scores start with unit variance: outputs are normed, and rows of E have norm 1."""
        width = self.table.shape[1]
        nn.init.normal_(self.table, std=width**-0.5, generator=generator)
        nn.init.normal_(self.places, std=0.02, generator=generator)
        for name, parameter in self.layers.named_parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _embed(self, batch: Sequences, generator: Randomness | None) -> Tensor:
        scale, at = math.sqrt(self.table.shape[1]), batch.places()
        if fused.runs(self.table):
            return fused.embed(
                self.table, batch.items, self.places, at, scale, self.dropout, generator
            )
        x = F.embedding(batch.items, self.table) * scale + F.embedding(at, self.places)
        return dropout(x, self.dropout, generator)

    def _finish(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class _Layer(TransformerLayer):
    """One pre-norm Transformer layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = CausalSelfAttention(config.dim, config.heads, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.dropout)

    def forward(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        mixed = self.attention.mixed(self.attention_norm(x), layout, generator)
        return self._behind(x, mixed, generator)

    def last(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        mixed = self.attention.last_mixed(self.attention_norm(x), layout, generator)
        return self._behind(layout.last(x), mixed, generator)

    def _behind(self, x: Tensor, mixed: Tensor, generator: Randomness | None) -> Tensor:
        """What follows the attention's heads."""
        output, norm, forward, p = (
            self.attention.output, self.feed_forward_norm, self.feed_forward, self.dropout
        )  # fmt: skip
        if fused.runs(x):
            # the biases of the products are added where their result is read next
            h = products.linear(mixed, output.weight)
            x, normed = fused.sum_and_norm(x, h, output.bias, norm, p, generator)
            h = products.relu_feed_forward(normed, forward.first, forward.second, p, generator)
            return fused.residual(x, h, forward.second.bias, p, generator)
        x = x + dropout(output(mixed), p, generator)
        return x + forward(norm(x), generator)
