"""Layers that work on the real tokens of a jagged batch.

Everything token-wise (norms, projections, feed-forward, dropout) sees ``[N, D]``, the N real tokens
of the batch and no padding.  Attention alone needs rectangles, and asks a :class:`Layout` for them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.draws import Randomness, words
from seqrec.encoders import fused
from seqrec.encoders.layout import Layout
from seqrec.encoders.products import linear


def dropout(x: Tensor, p: float, generator: Randomness | None) -> Tensor:
    """Dropout by 16 random bits an element, drawn from `generator`.

    ``F.dropout`` draws one number after the other on the CPU, 11 to 19 ns an element; four elements
    share one 64-bit draw here.  The probability is p rounded to a multiple of 2^-16, and the kept
    values are scaled by exactly that, so the mean is unbiased.

    Args:
        x: any shape, floating point.
        p: probability of a zero, in [0, 1).
        generator: what draws, on the device of `x`; None (evaluation) returns `x` itself.
    """
    dropped = min(round(p * 65536), 65535)
    if generator is None or dropped == 0:
        return x
    drawn = words((x.numel() + 3) // 4, generator, x.device)
    bits = drawn.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (bits >= dropped - 32768).to(x.dtype).mul_(65536 / (65536 - dropped))
    return x * keep


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention over the rows of a jagged batch.

    Args:
        dim: width D, a multiple of `heads`.
        heads: number of heads.
        dropout: probability with which an attention weight is dropped.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.input = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [N, D]; token i of a row attends to the tokens 0..i of its own row."""
        projected: Tensor = self.output(self.mixed(x, layout, generator))
        return projected

    def last(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [B, D], the output for each row's last token.

        Keys and values are computed for all tokens, queries and outputs for the last ones.
        """
        projected: Tensor = self.output(self.last_mixed(x, layout, generator))
        return projected

    def mixed(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [N, D], what :meth:`forward` projects: the heads' values, mixed."""
        qkv = linear(x, self.input.weight, self.input.bias)
        offsets = layout.batch.offsets
        if self._unpadded(x, layout):
            return fused.self_attention(
                qkv, offsets, self.heads, self.dropout, generator, layout.longest
            )
        blocks = [self._attend(block, generator) for block in layout.rectangles(qkv)]
        return layout.tokens(blocks)

    def last_mixed(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [B, D], what :meth:`last` projects."""
        (queries, pairs), offsets = self.last_input(x, layout), layout.batch.offsets
        if self._unpadded(x, layout):
            return fused.last_attention(
                queries, pairs, offsets, self.heads, self.dropout, generator,
                layout.longest,
            )  # fmt: skip
        blocks = [
            self._attend_last(*block, generator)
            for block in zip(
                layout.by_rectangle(queries),
                layout.rectangles(pairs),
                layout.padding(),
                strict=True,
            )
        ]
        return layout.by_row(blocks)

    def _unpadded(self, x: Tensor, layout: Layout) -> bool:
        """Whether attention takes the tokens as they are, and no rectangles."""
        return layout.fixed or x.device.type != "cpu" or fused.runs(x, self.heads)

    def last_input(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """[N, D] -> queries [B, D] of the last tokens; keys and values [N, 2 D] of all."""
        dim = x.shape[1]
        weight, bias = self.input.weight, self.input.bias
        queries = linear(layout.last(x), weight[:dim], bias[:dim])
        return queries, linear(x, weight[dim:], bias[dim:])

    def _attend_last(
        self, q: Tensor, pairs: Tensor, padding: Tensor, generator: Randomness | None
    ) -> Tensor:
        """One rectangle: queries [rows, D], keys and values [rows, length, 2 D] -> [rows, D].

        `padding` [rows, length] is True where there is no token: a last token would see it.
        """
        rows, length, width = pairs.shape
        dim = width // 2
        split = (self.heads, dim // self.heads)
        # [2, rows, heads, length, dim per head]
        k, v = pairs.view(rows, length, 2, *split).permute(2, 0, 3, 1, 4)
        scaled = q.view(rows, *split)[:, :, None] * (1.0 / math.sqrt(split[1]))
        scores = torch.matmul(scaled, k.transpose(-2, -1))
        weights = scores.masked_fill(padding[:, None, None], -torch.inf).softmax(-1)
        return torch.matmul(dropout(weights, self.dropout, generator), v).view(rows, dim)

    def _attend(self, qkv: Tensor, generator: Randomness | None) -> Tensor:
        """One rectangle, [rows, length, 3 D] -> [rows, length, D].

        Rows are filled from the left, so the causal mask alone keeps a real token from seeing
        padding: whatever stands there comes later.
        """
        rows, length, width = qkv.shape
        dim = width // 3
        # [3, rows, heads, length, dim per head]
        q, k, v = qkv.view(rows, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if generator is None or self.dropout == 0.0:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = torch.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k.transpose(-2, -1))
            future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            mixed = torch.matmul(dropout(weights, self.dropout, generator), v)
        return mixed.transpose(1, 2).reshape(rows, length, dim)


class FeedForward(nn.Module):
    """Point-wise feed-forward of width D, ``W2 act(W1 x)``, dropout after each product."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, x: Tensor, generator: Randomness | None) -> Tensor:
        """[N, D] -> [N, D]."""
        hidden = dropout(F.relu(self.first(x)), self.dropout, generator)
        return dropout(self.second(hidden), self.dropout, generator)
