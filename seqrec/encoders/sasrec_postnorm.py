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

from seqrec.config import EncoderConfig
from seqrec.data.store import JaggedBatch
from seqrec.encoders import fused
from seqrec.encoders.base import Encoder, TransformerLayer
from seqrec.encoders.layers import CausalSelfAttention, dropout
from seqrec.encoders.layout import Layout

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

    def _embed(self, batch: JaggedBatch, generator: torch.Generator | None) -> Tensor:
        x = F.embedding(batch.items, self.table)
        places = F.embedding(self.places.shape[0] - 1 - batch.places_from_end(), self.places)
        if fused.runs(x):
            return fused.dropped_norm(x, places, self.norm, self.dropout, generator)
        return dropout(self.norm(x + places), self.dropout, generator)


class _Layer(TransformerLayer):
    """One post-norm Transformer layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = _Attention(config.dim, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim, eps=_EPS)
        self.first = nn.Linear(config.dim, 4 * config.dim)
        self.second = nn.Linear(4 * config.dim, config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim, eps=_EPS)

    def forward(self, x: Tensor, layout: Layout, generator: torch.Generator | None) -> Tensor:
        return self._behind_attention(x, self.attention(x, layout, generator), generator)

    def last(self, x: Tensor, layout: Layout, generator: torch.Generator | None) -> Tensor:
        mixed = self.attention.last(x, layout, generator)
        return self._behind_attention(layout.last(x), mixed, generator)

    def _behind_attention(
        self, x: Tensor, mixed: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        x = _residual_norm(x, mixed, self.attention_norm, self.dropout, generator)
        if fused.runs(x):
            inner = self.second(fused.gelu(F.linear(x, self.first.weight), self.first.bias))
        else:
            inner = self.second(F.gelu(self.first(x)))
        return _residual_norm(x, inner, self.feed_forward_norm, self.dropout, generator)


class _Attention(CausalSelfAttention):
    """The same attention, fused where that runs."""

    def forward(self, x: Tensor, layout: Layout, generator: torch.Generator | None) -> Tensor:
        if not fused.runs(x, self.heads):
            return super().forward(x, layout, generator)
        mixed = fused.self_attention(
            self.input(x), layout.batch.offsets, self.heads, self.dropout, generator
        )
        attended: Tensor = self.output(mixed)
        return attended

    def last(self, x: Tensor, layout: Layout, generator: torch.Generator | None) -> Tensor:
        if not fused.runs(x, self.heads):
            return super().last(x, layout, generator)
        queries, pairs = self.last_input(x, layout)
        mixed = fused.last_attention(
            queries, pairs, layout.batch.offsets, self.heads, self.dropout, generator
        )
        attended: Tensor = self.output(mixed)
        return attended


def _residual_norm(
    x: Tensor, h: Tensor, norm: nn.LayerNorm, p: float, generator: torch.Generator | None
) -> Tensor:
    """``norm(x + dropout(h))``."""
    if fused.runs(h):
        return fused.residual_norm(x, h, norm, p, generator)
    normed: Tensor = norm(x + dropout(h, p, generator))
    return normed
