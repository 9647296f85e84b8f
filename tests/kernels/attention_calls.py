"""Random calls of jagged attention, an oracle, and gradients, for the files that test it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import oracles
import torch
from torch import Tensor

from seqrec_kernels import backend, jagged_attention

NAMES = ("out", "dq", "dk", "dv")
FORMS = ("apart", "pairs", "packed")
LENGTHS = {
    "one token": [1],
    "ragged": [3, 1, 18, 5, 4, 7, 2, 33, 16, 17, 1],
    "empty ones too": [0, 5, 0, 0, 9, 0],
    "all empty": [0, 0],
    "none": [],
}
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": {"causal": False},
    "last": {"last": True},
}


class Call(NamedTuple):
    """Arguments of a random call."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    offsets: Tensor
    options: dict[str, Any]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self[:3]


def call(
    lengths: Sequence[int], heads: int = 2, size: int = 8, *, spare: int = 0, scale: float = 1.0,
    **options: Any,
) -> Call:  # fmt: skip
    """Numbers with standard deviation `scale`, and `spare` tokens behind the last sequence."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens, width = sum(lengths) + spare, heads * size
    rows = len(lengths) if options.get("last") else tokens
    q, k, v = (torch.randn(n, width) * scale for n in (rows, tokens, tokens))
    return Call(q, k, v, offsets, {"heads": heads, **options})


def oracle(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, *, heads: int,
    causal: bool = True, last: bool = False, dropout: float = 0.0, seed: int = 0,
    max_length: int | None = None,
) -> Tensor:  # fmt: skip
    """Query by query and head by head, with every weight's fate by Philox in Python's integers."""
    dropped = round(dropout * 65536)
    out = [(queries[i] * 0).nan_to_num() for i in range(queries.shape[0])]
    for b, (first, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        for i in [b] if last and end > first else range(first, 0 if last else end):
            seen = i + 1 if causal and not last else end
            parts = []
            for h, query in enumerate(queries[i].chunk(heads)):
                k, v = (t[first:seen].chunk(heads, 1)[h] for t in (keys, values))
                weights = torch.softmax(k @ query / math.sqrt(len(query)), 0)
                if dropped:
                    kept = [fate(seed, i * heads + h, j) >= dropped for j in range(first, seen)]
                    weights = weights * torch.tensor(kept) * 65536 / (65536 - dropped)
                parts.append(weights @ v)
            out[i] = torch.cat(parts)
    return torch.stack(out) if out else queries.clone()


def fate(seed: int, row: int, column: int) -> int:
    """The 16 bits of a weight."""
    word = oracles.philox_words(seed, row, column // 8, 4)[column // 2 % 4]
    return word >> 16 * (column % 2) & 0xFFFF


def attend(form: str, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, **options: Any) -> Tensor:
    """The operator, given what it is given apart, in pairs or packed."""
    if form == "packed" and not options.get("last"):
        return jagged_attention(torch.cat((q, k, v), 1), None, None, offsets, **options)
    if form != "apart":
        return jagged_attention(q, torch.cat((k, v), 1), None, offsets, **options)
    return jagged_attention(q, k, v, offsets, **options)


def gradients(
    made: Call, upstream: Tensor, dtype: torch.dtype | None = None,
    function: Callable[..., Tensor] = jagged_attention,
) -> list[Tensor]:  # fmt: skip
    """The output and the gradients of queries, keys and values."""
    inputs = oracles.leaves(*made.tensors, dtype=dtype)
    out = function(*inputs, made.offsets, **made.options)
    found = torch.autograd.grad(out, inputs, upstream.to(out.dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(t) if g is None else g
                            for t, g in zip(inputs, found, strict=True))]  # fmt: skip


def agrees(made: Call, form: str = "apart", floor: float = 2e-6) -> list[Tensor]:
    """Output and gradients under a random upstream gradient, against oracle and reference."""

    def ours_of(*tensors: Tensor, **options: Any) -> Tensor:
        return attend(form, *tensors, **options)

    upstream = torch.randn(made.queries.shape)
    right = gradients(made, upstream, torch.float64, oracle)
    with backend("reference"):
        plain = gradients(made, upstream, function=ours_of)
        same = gradients(made, upstream, torch.float64, ours_of)
    ours = gradients(made, upstream, function=ours_of)
    for name, our, true, dense, dense64 in zip(NAMES, ours, right, plain, same, strict=True):
        torch.testing.assert_close(dense64, true, rtol=1e-9, atol=1e-11, msg=name)
        assert our.isfinite().all(), name
        oracles.close(our, true, dense, name, floor)
    return ours


def cases(*shapes: tuple[int, int]) -> list[Call]:
    """Every mask, with and without dropout, in each shape (heads, size)."""
    return [
        call(lengths, *shape, spare=3, dropout=p, seed=-5, scale=1.5, **MASKS[mask])
        for lengths, shape, p, mask in product(LENGTHS.values(), shapes, (0.0, 0.3), MASKS)
    ]
