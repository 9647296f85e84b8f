"""Attention within the sequences of a jagged batch."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, id_checks, triton_loader
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.jagged_attention import autograd, blocked, native, reference
from seqrec_kernels.ops.jagged_attention.problem import Problem

__all__ = ["jagged_attention"]


def _triton_unsupported(queries: Tensor, keys: Tensor) -> str | None:
    """Of one head, which a tile holds whole: beyond these widths registers spill."""
    widest = 64 if queries.dtype == torch.float32 else 128
    if queries.shape[1] > widest:
        return f"a head of {queries.shape[1]} numbers of {queries.dtype} is wider than {widest}"
    return triton_loader.unsupported(queries, keys)


register(
    "jagged_attention",
    {
        "native": native.unsupported,
        "triton": _triton_unsupported,
        "blocked": blocked.unsupported,
        "reference": reference.unsupported,
    },
)


def jagged_attention(
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    offsets: Tensor,
    *,
    heads: int = 1,
    causal: bool = True,
    last: bool = False,
    dropout: float = 0.0,
    seed: int | Tensor = 0,
    max_length: int | None = None,
) -> Tensor:
    """Multi-head softmax attention of each sequence of a jagged batch to itself; no padding.

    A head has ``size = width / heads`` numbers, the heads of a row lie side by side. For each of
    them, with the sum over the keys j that query i sees,

        out_i = sum_j softmax_j(q_i . k_j / sqrt(size)) v_j

    No matrix of scores is kept: beside inputs and outputs there are one number a query and head,
    and a workspace that does not grow with the batch.

    Args:
        queries: ``[N, width]`` float32, bfloat16 or float16 (float64 runs the dense reference);
            with ``last`` one row a sequence, ``[B, width]``.
        keys, values: ``[N, width]`` in the same dtype; rows may lie anywhere, those of a column
            slice too. What one projection gives is taken as it is, and its gradient comes in one
            piece: without ``values`` (None) keys are ``[N, 2 width]``, keys and values side by
            side, and without both queries are ``[N, 3 width]``, all three.
        offsets: int64 ``[B + 1]``, from 0 on and never falling; sequence b is the rows
            ``offsets[b] .. offsets[b + 1] - 1`` and may be empty. Rows from ``offsets[B]`` on
            belong to none: what stands there is ignored, their output is 0 and so are their
            gradients. So a batch may have a capacity, and shapes need not depend on the data.
        heads: at least 1, a divisor of ``width``.
        causal: whether a query sees the keys up to its own place only, else all of its sequence.
        last: whether there is one query a sequence, which sees all of it (that of its last place
            does so under a causal mask too). That of an empty sequence has the output 0.
        dropout: Python float in [0, 1), the probability with which a weight is dropped, rounded to
            a multiple of 2^-16; kept weights are divided by exactly the share that is kept.
        seed: of the drops, an int or a 0-d int64 tensor on the operator's device, read there. A
            weight's fate depends on it and on head, query row and key row alone: Philox stream 4,
            counters in ``problem.py``.
        max_length: no sequence is longer, a Python int. Only the torch path on a GPU looks at it:
            without it that waits for the device to know the longest.

    Returns:
        Shape and dtype of ``queries``. Sums are float32 and rounded once.

    Gradients flow to ``queries``, ``keys`` and ``values``, each in its own dtype, in a fixed order
    (same bits every time, whatever the number of threads). Second derivatives exist under
    ``backend("reference")`` only. Under autocast float32 operands are cast as ``torch.mm`` would,
    and the output has that dtype, as torch's own attention has.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: offsets that fall, do not start at 0 or end behind ``N``, or a sequence longer
            than ``max_length``, on the CPU in eager mode. On CUDA and inside ``torch.compile``
            nothing outside the tensors is read then, and what comes out has no meaning, unless
            ``SEQREC_CHECK_IDS=1``.

    Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), section 3.2; formulas and
    backward: ``problem.py``.
    """
    given = {"queries": queries, "keys": keys, "values": values}
    held = calls.autocast(**{name: t for name, t in given.items() if t is not None})
    heads = checks.integer("heads", heads, 1)
    width, rows = _shapes(held, heads)
    for name, flag in (("causal", causal), ("last", last)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, not {type(flag).__name__}")
    queries = held["queries"]
    offsets = checks.int64("offsets", offsets, queries)
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets must be [B + 1], not {tuple(offsets.shape)}")
    expected = offsets.shape[0] - 1 if last else rows
    if queries.shape[0] != expected:
        of = "one a sequence with last" if last else "one a key"
        raise ValueError(f"queries have {queries.shape[0]} rows; they must have {expected}, {of}")
    if max_length is not None:
        max_length = checks.integer("max_length", max_length, 0)
    longest = -1 if max_length is None else max_length
    offsets = id_checks.offset_values("offsets", offsets, rows, "keys have", longest)
    share = checks.within("dropout", dropout, 0.0, 1.0)
    if share == 1.0:
        raise ValueError(f"dropout is {dropout}; it must be below 1")

    problem = Problem(
        queries, held.get("keys"), held.get("values"), offsets, checks.seed(seed, queries), heads,
        causal and not last, last, min(round(share * 65536), 65535), max_length,
    )  # fmt: skip
    one = queries[:, : width // heads]  # predicates see one head
    implementation = choose("jagged_attention", one, one)
    if implementation == "reference":
        with calls.no_autocast(queries.device.type):  # its casts are done, above
            return reference.attention(problem)
    return autograd.jagged_attention(problem, implementation)


def _shapes(held: dict[str, Tensor], heads: int) -> tuple[int, int]:
    """Width of a query and number of tokens, of tensors that fit each other."""
    if "values" in held and "keys" not in held:
        raise ValueError("keys are None beside values; give both, or neither")
    each = {"keys": 2 if "values" not in held else 1, "queries": 3 if "keys" not in held else 1}
    for name, parts in each.items():
        if parts > 1 and name in held:
            (one,) = checks.matrices(**{name: held[name]})
            if one.shape[1] % parts != 0:
                raise ValueError(f"{name} have width {one.shape[1]}, not {parts} equal parts")
            held = {**held, name: one[:, : one.shape[1] // parts]}
    queries, *others = checks.matrices(**held)
    width = queries.shape[1]
    if width == 0 or width % heads != 0:
        raise ValueError(f"queries have width {width}; it must be a multiple of heads, {heads}")
    rows = others[0].shape[0] if others else queries.shape[0]
    if others and others[-1].shape[0] != rows:
        raise ValueError(
            f"keys have {rows} rows but values {others[-1].shape[0]}; they must be equal"
        )
    return width, rows
