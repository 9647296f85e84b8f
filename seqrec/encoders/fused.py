"""What a Transformer layer does beside its matrix products, in C++ (csrc/cpu/encoder.cpp).

Attention over each sequence of a jagged batch, the embedding, and residual sums with their dropout
and norm; the biases of the products before them are added here too.  On a CPU these pieces are
bound by memory and by the number of small operators, not by arithmetic; here each is one pass.
Dropout draws 16 bits a number from Philox4x32-10, keyed by a seed from the step's generator and
counted by place: nothing is stored, and the backward draws them again.

Where this does not run (:func:`runs`), the layers compute the same functions in torch, with other
draws.  Both directions are sums in a fixed order, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqrec.draws import Randomness, seed
from seqrec_kernels import jagged_attention, native
from seqrec_kernels.calls import no_autocast


def runs(x: Tensor, heads: int = 1) -> bool:
    """Whether the C++ takes rows like `x` [N, D], cut into `heads`.

    `x` is what a layer hands on, float32 also under autocast, which narrows the products alone.
    """
    return (
        native.unsupported(x, x) is None
        and x.dtype == torch.float32
        and x.shape[1] % (16 * heads) == 0
    )


def self_attention(
    qkv: Tensor,
    offsets: Tensor,
    heads: int,
    p: float,
    generator: Randomness | None,
    max_length: int | None = None,
) -> Tensor:
    """Causal attention of every token: [N, 3 D], queries, keys and values side by side -> [N, D].

    Args:
        qkv: a row a token.
        offsets: int64 [B + 1]; sequence b is the rows offsets[b] to offsets[b + 1], and what is
            behind them comes out as 0.
        heads: number of heads, each with D / heads numbers.
        p: probability with which an attention weight is dropped, rounded to a multiple of 2^-16.
        generator: seeds the draws; None: nothing is dropped.
        max_length: no sequence is longer; a GPU need not be asked for that then.
    """
    drawn = _attended(p, generator, qkv.device)
    with no_autocast(qkv.device.type):  # a projection's dtype is the one to compute in
        return jagged_attention(
            qkv, None, None, offsets, heads=heads, max_length=max_length, **drawn
        )


def last_attention(
    queries: Tensor,
    pairs: Tensor,
    offsets: Tensor,
    heads: int,
    p: float,
    generator: Randomness | None,
    max_length: int | None = None,
) -> Tensor:
    """Attention of one query a sequence to all of it: [B, D] and keys, values [N, 2 D] -> [B, D].

    Arguments as in :func:`self_attention`.
    """
    drawn = _attended(p, generator, queries.device)
    with no_autocast(queries.device.type):
        return jagged_attention(
            queries, pairs, None, offsets, heads=heads, last=True, max_length=max_length, **drawn
        )


def embed(
    table: Tensor,
    items: Tensor,
    places: Tensor,
    at: Tensor,
    scale: float,
    p: float,
    generator: Randomness | None,
) -> Tensor:
    """``dropout(scale * table[items] + places[at])``: [V, D], int64 [N], [L, D], int64 [N]."""
    found: Tensor = _Embedding.apply(table, items, places, at, scale, *draws(p, generator))
    return found


def residual(x: Tensor, h: Tensor, bias: Tensor, p: float, generator: Randomness | None) -> Tensor:
    """``x + dropout(h + bias)``, [N, D], [N, D] and [D]."""
    found: Tensor = _Residual.apply(x, h, bias, *draws(p, generator))
    return found


def sum_and_norm(
    x: Tensor, h: Tensor, bias: Tensor, norm: nn.LayerNorm, p: float,
    generator: Randomness | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``s = x + dropout(h + bias)``, and ``norm(s)``, all [N, D], `bias` [D]."""
    both: tuple[Tensor, Tensor] = _ResidualNorm.apply(
        x, h, bias, norm.weight, norm.bias, norm.eps, True, *draws(p, generator)
    )
    return both


def residual_norm(
    x: Tensor, h: Tensor, bias: Tensor, norm: nn.LayerNorm, p: float,
    generator: Randomness | None,
) -> Tensor:  # fmt: skip
    """``norm(x + dropout(h + bias))``, all [N, D], `bias` [D]."""
    found: Tensor = _ResidualNorm.apply(
        x, h, bias, norm.weight, norm.bias, norm.eps, False, *draws(p, generator)
    )[1]
    return found


def dropped_norm(x: Tensor, norm: nn.LayerNorm, p: float, generator: Randomness | None) -> Tensor:
    """``dropout(norm(x))``, [N, D]."""
    found: Tensor = _ResidualNorm.apply(
        x, None, None, norm.weight, norm.bias, norm.eps, False, *draws(p, generator)
    )[1]
    return found


def _attended(p: float, generator: Randomness | None, device: torch.device) -> dict[str, Any]:
    """What both forms of attention drop."""
    return {} if generator is None else {"dropout": p, "seed": seed(generator, device)}


def draws(p: float, generator: Randomness | None) -> tuple[Tensor, int]:
    """A seed, 0-d int64, and how many of 65536 are dropped."""
    if generator is None:
        return torch.zeros((), dtype=torch.int64), 0
    return seed(generator, torch.device("cpu")), min(round(p * 65536), 65535)


class _Embedding(torch.autograd.Function):
    """``dropout(scale * table[items] + places[at])``."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        items: Tensor,
        places: Tensor,
        at: Tensor,
        scale: float,
        seed: Tensor,
        dropped: int,
    ) -> Tensor:
        y = table.new_empty(len(items), table.shape[1])
        torch.ops.seqrec_native.embed_forward(
            table.contiguous(), items, places.contiguous(), at, scale, seed, dropped, y
        )
        ctx.save_for_backward(items, at, seed)
        ctx.shapes = table.shape, places.shape
        ctx.scale, ctx.dropped = scale, dropped
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        items, at, seed = ctx.saved_tensors
        d_table, d_places = (grad.new_empty(shape) for shape in ctx.shapes)
        torch.ops.seqrec_native.embed_backward(
            grad.contiguous(), items, at, ctx.scale, seed, ctx.dropped, d_table, d_places
        )
        return d_table, None, d_places, None, None, None, None


class _Residual(torch.autograd.Function):
    """``x + dropout(h + bias)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, bias: Tensor, seed: Tensor, dropped: int) -> Tensor:
        s = torch.empty_like(x, memory_format=torch.contiguous_format)
        torch.ops.seqrec_native.residual_forward(
            x.contiguous(), h.contiguous(), bias, seed, dropped, s
        )
        ctx.save_for_backward(seed)
        ctx.dropped = dropped
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        grad = grad.contiguous()
        d_h = torch.empty_like(grad) if ctx.dropped else grad
        d_bias = grad.new_empty(grad.shape[1])
        torch.ops.seqrec_native.residual_backward(grad, seed, ctx.dropped, d_h, d_bias)
        return grad, d_h, d_bias, None, None


class _ResidualNorm(torch.autograd.Function):
    """``s = x + dropout(h + shift)`` and ``norm(s)``; without h and shift ``dropout(norm(x))``.

    The sum comes back where it is kept, and then it has a gradient too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        keep: bool,
        seed: Tensor,
        dropped: int,
    ) -> tuple[Tensor | None, Tensor]:
        x, h = x.contiguous(), None if h is None else h.contiguous()
        s = torch.empty_like(x) if keep else None
        y, unit, rate = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[0])
        torch.ops.seqrec_native.norm_forward(
            x, h, shift, weight, bias, eps, h is None, seed, dropped, s, y, unit, rate
        )
        ctx.save_for_backward(weight, seed, unit, rate)
        ctx.after, ctx.dropped = h is None, dropped
        ctx.set_materialize_grads(False)
        return s, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_s: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, seed, unit, rate = ctx.saved_tensors
        d_x = torch.empty_like(unit)
        # without a mask between them both terms of the sum have one gradient
        d_h = torch.empty_like(unit) if ctx.dropped and not ctx.after else d_x
        d_scales = weight.new_empty(2 if ctx.after else 3, weight.shape[0])
        torch.ops.seqrec_native.norm_backward(
            torch.zeros_like(unit) if grad is None else grad.contiguous(),
            None if grad_s is None else grad_s.contiguous(),
            weight,
            ctx.after,
            seed,
            ctx.dropped,
            unit,
            rate,
            d_x,
            d_h,
            d_scales,
        )
        nothing = (None,) * 4
        if ctx.after:
            return d_x, None, None, *d_scales, *nothing
        d_weight, d_bias, d_shift = d_scales
        return d_x, d_h, d_shift, d_weight, d_bias, *nothing
