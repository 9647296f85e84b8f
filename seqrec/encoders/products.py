"""The matrix products of a Transformer layer, in C++ (csrc/cpu/encoder_products.cpp).

A projection, and a feed-forward with the activation between its two products.  The inner rows of a
feed-forward are the widest there are, and its products most of a layer's arithmetic: block by block
they are formed, activated and multiplied again while they lie in cache.  Each backward is one pass
over the same blocks, which forms the gradients of rows and weights side by side; those of the
weights are summed in chunks that depend on the number of rows alone, so the number of threads
changes no bit.

Where :func:`seqrec.encoders.fused.runs` says no, the layers multiply in torch.  Under autocast to
bfloat16 operands are rounded inside, block by block, where the processor multiplies bfloat16
(AVX512-BF16); elsewhere products stay float32, which is faster there than emulating it.  Either way
sums, and everything that is handed on or kept, are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqrec.draws import Randomness
from seqrec.encoders import fused


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight' + bias``: [N, D], [E, D] and [E] -> [N, E]; as torch's where no C++ runs."""
    if not fused.runs(x):
        return F.linear(x, weight, bias)
    found: Tensor = _Linear.apply(x, weight, bias, _narrow())
    return found


def gelu_feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """``second(gelu(first(x)))`` with the exact gelu, but for the bias of `second`: [N, D]."""
    nothing = fused.draws(0.0, None)
    return _feed_forward(x, first, second, False, *nothing)


def relu_feed_forward(
    x: Tensor, first: nn.Linear, second: nn.Linear, p: float, generator: Randomness | None
) -> Tensor:
    """``second(dropout(relu(first(x))))``, but for the bias of `second`: [N, D].

    Args:
        x: [N, D].
        first, second: D -> E and E -> D, E a multiple of 16.
        p: probability with which an inner number is dropped, rounded to a multiple of 2^-16.
        generator: seeds the draws; None: nothing is dropped.
    """
    return _feed_forward(x, first, second, True, *fused.draws(p, generator))


def _feed_forward(
    x: Tensor, first: nn.Linear, second: nn.Linear, relu: bool, seed: Tensor, dropped: int
) -> Tensor:
    found: Tensor = _FeedForward.apply(
        x, first.weight, first.bias, second.weight, relu, seed, dropped, _narrow(),
        torch.is_grad_enabled(),
    )  # fmt: skip
    return found


def _narrow() -> bool:
    """Whether autocast asks for bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class _Linear(torch.autograd.Function):
    """``x weight' + bias``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, narrow: bool) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y = x.new_empty(x.shape[0], weight.shape[0])
        torch.ops.seqrec_native.linear_forward(x, weight, bias, narrow, y)
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.narrow = bias is not None, narrow
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        height, width = weight.shape
        d_x = torch.empty_like(x)
        d_parameters = weight.new_empty(height * (width + ctx.biased))
        torch.ops.seqrec_native.linear_backward(
            grad.contiguous(), x, weight, ctx.narrow, d_x, d_parameters
        )
        d_weight, d_bias = d_parameters.split((height * width, height * ctx.biased))
        return d_x, d_weight.view_as(weight), d_bias if ctx.biased else None, None


class _FeedForward(torch.autograd.Function):
    """``act(x first' + bias) second'``; keeps ``x first'``, and activates it again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        bias: Tensor,
        second: Tensor,
        relu: bool,
        seed: Tensor,
        dropped: int,
        narrow: bool,
        keep: bool,
    ) -> Tensor:
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        h = x.new_empty(x.shape[0], first.shape[0]) if keep else None
        torch.ops.seqrec_native.feed_forward_forward(
            x, first, bias, second, relu, seed, dropped, narrow, h, y
        )
        ctx.save_for_backward(x, first, bias, second, h, seed)
        ctx.relu, ctx.dropped, ctx.narrow = relu, dropped, narrow
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, first, bias, second, h, seed = ctx.saved_tensors
        d_x = torch.empty_like(x)
        sizes = (first.numel(), second.numel(), bias.numel())
        d_parameters = x.new_empty(sum(sizes))
        torch.ops.seqrec_native.feed_forward_backward(
            grad.contiguous(), x, first, bias, second, h, ctx.relu, seed, ctx.dropped, ctx.narrow,
            d_x, d_parameters,
        )  # fmt: skip
        d_first, d_second, d_bias = d_parameters.split(sizes)
        nothing = (None,) * 5
        return d_x, d_first.view_as(first), d_bias, d_second.view_as(second), *nothing
