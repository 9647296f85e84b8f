"""What jagged attention asks for, as every implementation takes it, and what it means.

A query with row ``i`` sees the keys ``first_i <= j < end_i``: of its own sequence, those up to
itself, all, or (``last``, where query ``i`` belongs to sequence ``i``) all. For each head, with
``t = 1 / sqrt(size)``,

    s_ij = t q_i . k_j        p_ij = exp(s_ij - l_i),  l_i = log sum_j exp(s_ij)
    o_i  = sum_j p_ij f_ij v_j

where ``f_ij`` is 0 for a dropped weight and ``65536 / (65536 - dropped)`` for another: what is kept
is scaled by exactly the share that is kept. A query that sees nothing has ``o_i = 0``.

**Backward.** With ``g_i`` the gradient of ``o_i``, ``c_ij = f_ij (g_i . v_j)`` and
``m_i = sum_j p_ij c_ij = g_i . o_i``,

    ds_ij = p_ij (c_ij - m_i)
    dq_i  = t sum_j ds_ij k_j       dk_j = t sum_i ds_ij q_i       dv_j = sum_i p_ij f_ij g_i

The weights are formed again from the ``l_i``; none is kept. Seen from the other side a key ``j`` is
seen by an interval of queries, too.

**Dropout** is a counter (``philox.py``): weight (i, j) of head h is dropped where its 16 bits are
below ``dropped``. They are number ``j % 8`` of the eight that stream 4 has for the counter

    c0 = i * heads + h        c1 = j // 8

with rows i and j as they stand in the tensors.

Sources: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), section 3.2; the backward from
row statistics: Dao et al., "FlashAttention" (NeurIPS 2022), appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Problem", "gradients", "operands", "saved_shapes", "spans"]


class Problem(NamedTuple):
    """One call of the family, checked. ``operands`` takes queries, keys and values apart."""

    queries: Tensor  # [M, width]; M == N, or the number of sequences with `last`
    keys: (
        Tensor | None
    )  # [N, width], or [N, 2 width] with the values; None: queries are [N, 3 width]
    values: Tensor | None  # [N, width]
    offsets: Tensor  # int64 [B + 1]; rows behind offsets[B] belong to no sequence
    seed: Tensor  # int64, 0-d, on the operator's device; read on the device
    heads: int
    causal: bool  # False with `last`
    last: bool
    dropped: int  # of 65536
    max_length: int | None  # no sequence is longer

    @property
    def width(self) -> int:
        """Numbers of a query."""
        return self.queries.shape[1] // (3 if self.keys is None else 1)

    @property
    def size(self) -> int:
        """Numbers of one head."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """N."""
        return (self.queries if self.keys is None else self.keys).shape[0]

    @property
    def scale(self) -> float:
        """What scores are multiplied with."""
        return 1 / math.sqrt(self.size)

    @property
    def kept_scale(self) -> float:
        """What the weights that are kept are multiplied with."""
        return 65536 / (65536 - self.dropped)


def operands(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[M, width]``, keys and values ``[N, width]``: views."""
    q, k, v = _apart(problem, problem[:3])
    assert q is not None and k is not None and v is not None
    return q, k, v


def gradients(
    problem: Problem, needs: list[bool], allocate: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """Memory for the gradients wanted.

    Args:
        allocate: a tensor -> memory as wide as it, for its gradient.

    Returns:
        The gradients, and where in them those of queries, keys and values are to be written.
    """
    wanted = [
        allocate(t) if need and t is not None else None
        for t, need in zip(problem[:3], needs, strict=True)
    ]
    return [t for t in wanted if t is not None], _apart(problem, wanted)


def _apart(problem: Problem, held: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    first, second, third = held
    if problem.keys is None:
        return (None, None, None) if first is None else tuple(first.chunk(3, 1))
    if problem.values is None:
        return (first, *((None, None) if second is None else second.chunk(2, 1)))
    return first, second, third


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what a ``forward`` saves: the log-sum-exps, float32."""
    return [(problem.queries.shape[0], problem.heads)] if any(needs) else []


def spans(problem: Problem) -> tuple[Tensor, Tensor]:
    """The keys each query sees: the first, and the one behind the last, int64 ``[M]``."""
    offsets = problem.offsets
    if problem.last:
        return offsets[:-1], offsets[1:]
    row = torch.arange(problem.tokens, device=offsets.device)
    sequence = torch.searchsorted(offsets[1:].contiguous(), row, right=True)  # B: of none
    first = offsets[sequence]
    end = torch.cat((offsets[1:], offsets[-1:]))[sequence]
    if problem.causal:
        end = torch.minimum(end, row + 1)
    return first, torch.maximum(end, first)
