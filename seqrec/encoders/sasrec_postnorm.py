"""The SASRec encoder of the S3-Rec line of work, as ICSRec, FENRec and DuoRec publish it.

A causal Transformer as in BERT: with norm(x) a LayerNorm of eps 1e-12,

    x = dropout(norm(E[item] + P[place]))

    x <- norm(x + dropout(attention(x)))        x <- norm(x + dropout(W2 gelu(W1 x)))

where W1 is D -> 4 D, gelu the exact one, and dropout also falls on the attention weights.  Places
are counted from the end: the last item of a sequence, however long, has place max_length - 1, so
prefixes of one sequence share no state.  Nothing follows the last layer.  The scores of all items
are the products of an output with the same table E.

Published code pads with a row 0 and reserves a mask row behind the items.  Both are classes of its
training softmax, so their rows are trained; ``encoder.extra_rows = 2`` is that, with the two at the
end of the table.  Its evaluation ranks them among the items too, where they are never the answer;
here they are no candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.data.store import Sequences
from seqrec.draws import Randomness
from seqrec.encoders import fused, products
from seqrec.encoders.base import Encoder, TransformerLayer
from seqrec.encoders.layers import CausalSelfAttention, dropout
from seqrec.encoders.layout import Layout
from seqrec.settings import EncoderConfig

_EPS = 1e-12


class PostNormSASRec(Encoder):
    """The post-norm Transformer; places are counted from the end of a sequence.

    Args:
        n_items, config: as in :class:`Encoder`.
        generator: on the CPU; draws the initial weights, N(0, 0.02^2), biases 0.
    """

    def __init__(self, n_items: int, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__(n_items, config)
        self.norm = nn.LayerNorm(config.dim, eps=_EPS)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _embed(self, batch: Sequences, generator: Randomness | None) -> Tensor:
        at = self.places.shape[0] - 1 - batch.places_from_end()
        if fused.runs(self.table):
            x = fused.embed(self.table, batch.items, self.places, at, 1.0, 0.0, None)
            return fused.dropped_norm(x, self.norm, self.dropout, generator)
        x = F.embedding(batch.items, self.table) + F.embedding(at, self.places)
        return dropout(self.norm(x), self.dropout, generator)


class _Layer(TransformerLayer):
    """One post-norm Transformer layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = CausalSelfAttention(config.dim, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim, eps=_EPS)
        self.first = nn.Linear(config.dim, 4 * config.dim)
        self.second = nn.Linear(4 * config.dim, config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim, eps=_EPS)

    def forward(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        return self._behind(x, self.attention.mixed(x, layout, generator), generator)

    def last(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        mixed = self.attention.last_mixed(x, layout, generator)
        return self._behind(layout.last(x), mixed, generator)

    def _behind(self, x: Tensor, mixed: Tensor, generator: Randomness | None) -> Tensor:
        """What follows the attention's heads."""
        output, p = self.attention.output, self.dropout
        if fused.runs(x):
            # the biases of the products are added where their result is read next
            h = products.linear(mixed, output.weight)
            x = fused.residual_norm(x, h, output.bias, self.attention_norm, p, generator)
            h = products.gelu_feed_forward(x, self.first, self.second)
            return fused.residual_norm(x, h, self.second.bias, self.feed_forward_norm, p, generator)
        x = self.attention_norm(x + dropout(output(mixed), p, generator))
        h = self.second(F.gelu(self.first(x)))
        normed: Tensor = self.feed_forward_norm(x + dropout(h, p, generator))
        return normed
