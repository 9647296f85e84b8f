"""Jagged attention in rectangles: torch only, any device. Formulas: ``problem.py``.

**Rectangles.** Sequences of similar length are laid side by side, ``[rows, width]``, with widths
that grow by half: on the public logs 80 to 87 % of one rectangle for all would be padding, and
under a third of these is. A rectangle is cut into blocks of sequences, and a long one into blocks
of its queries, so that the scores of a block fit the workspace. No sum crosses two blocks but those
of a sequence's keys over its queries, which come in order.

**On a GPU** lengths are not read: there is one rectangle, ``max_length`` wide. Without that number
the call waits for the device to know the longest.

**Memory.** The workspace; beside it, and what the caller gets, vectors over rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.jagged_attention.problem import (
    Problem,
    gradients,
    operands,
    saved_shapes,
    spans,
)

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

# the score of a key that is not seen: far below every score, yet finite, so that a query without
# any key still has a softmax
_OUT = -1.7e38


class Tiles(NamedTuple):
    """Block sizes; tests make them tiny."""

    floats: int = 2**20  # of the scores of a block (4 MiB)
    cuda: int = 64  # as much more on a GPU
    draws: int = 8  # as much less where weights are dropped: their numbers are int64


TILES = Tiles()


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The output; saved are the log-sum-exps, ``[M, heads]``."""
    out = _sums(problem.queries, problem.width)
    lse = _sums(problem.queries, problem.heads)
    longest = _longest(problem)
    q, k, v = operands(problem)
    for part in _parts(problem, longest):
        keys, values = part.heads(k), part.heads(v)
        for block in part.blocks():
            scores = block.scores(block.heads(q), keys)
            lse[block.target] = scores.logsumexp(-1).transpose(1, 2)
            weights = scores.softmax(-1)
            if problem.dropped:
                weights *= block.factors()
            out[block.target] = (weights @ values).transpose(1, 2).flatten(2)
    first, end = spans(problem)
    out = out[:-1].masked_fill_((end - first > longest)[:, None], torch.nan)
    return out.to(problem.queries.dtype), [lse[:-1]] if any(needs) else []


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order queries, keys, values, each in its input's dtype."""
    found, (d_queries, d_keys, d_values) = gradients(problem, needs, lambda t: _sums(t, t.shape[1]))
    q, k, v = operands(problem)
    for part in _parts(problem, _longest(problem)):
        keys, values = part.heads(k), part.heads(v)
        own_keys, own_values = torch.zeros_like(keys), torch.zeros_like(values)
        for block in part.blocks():
            queries, upstream = block.heads(q), block.heads(grad)
            lse = saved[1][block.source].transpose(1, 2).unsqueeze(-1)
            weights = block.scores(queries, keys).sub_(lse).exp_()
            slopes = upstream @ values.transpose(2, 3)
            kept = weights
            if problem.dropped:
                factors = block.factors()
                slopes *= factors
                kept = weights * factors
            slopes -= (weights * slopes).sum(-1, keepdim=True)
            slopes *= weights
            slopes *= problem.scale
            if d_queries is not None:
                d_queries[block.target] = (slopes @ keys).transpose(1, 2).flatten(2)
            own_keys += slopes.transpose(2, 3) @ queries
            own_values += kept.transpose(2, 3) @ upstream
        for rows, own in ((d_keys, own_keys), (d_values, own_values)):
            if rows is not None:
                rows[part.target] = own.transpose(1, 2).flatten(2)
    return [rows[:-1].to(grad.dtype) for rows in found]


def _sums(rows: Tensor, width: int) -> Tensor:
    """Zeros in float32, a row each and one behind them, where what no row wants is written."""
    return rows.new_zeros(rows.shape[0] + 1, width, dtype=torch.float32)


def _longest(problem: Problem) -> int:
    if problem.max_length is not None:
        return problem.max_length
    longest = int(problem.offsets.diff().max()) if problem.offsets.shape[0] > 1 else 0
    return min(longest, problem.tokens)


def _parts(problem: Problem, longest: int) -> Iterator[_Part]:
    """Rectangles, cut into as many sequences as the workspace takes."""
    lengths = problem.offsets.diff().clamp(0, longest)
    floats = _floats(problem)
    for rows, width in _groups(lengths, longest, read=lengths.device.type == "cpu"):
        queries = 1 if problem.last else width
        size = max(1, floats // (problem.heads * queries * _columns(problem, width)))
        for some in rows.split(size):
            yield _Part(problem, some, width)


def _floats(problem: Problem) -> int:
    scale = TILES.cuda if problem.queries.device.type == "cuda" else 1
    return TILES.floats * scale // (TILES.draws if problem.dropped else 1)


def _columns(problem: Problem, width: int) -> int:
    """Keys of a rectangle; with dropout also those that share a counter with its first and last."""
    return width + 14 if problem.dropped else width


def _groups(lengths: Tensor, longest: int, read: bool) -> list[tuple[Tensor, int]]:
    """Numbers of sequences, and a length that the longest of them does not pass."""
    if longest == 0 or lengths.numel() == 0:
        return []
    if not read:
        return [(torch.arange(lengths.numel(), device=lengths.device), longest)]
    order = torch.argsort(lengths, stable=True)
    edges, edge = [0], 4
    while edge < longest:
        edges.append(edge)
        edge += edge // 2
    ordered = lengths[order]
    cuts = torch.searchsorted(ordered, torch.tensor(edges), right=True)
    return [
        (rows, int(lengths[rows[-1]]))
        for rows in order.tensor_split(cuts)[1:]  # the first are empty
        if rows.numel()
    ]


class _Part:
    """Some sequences in a rectangle of keys."""

    def __init__(self, problem: Problem, sequences: Tensor, width: int) -> None:
        self.problem = problem
        self.sequences = sequences
        self.first = problem.offsets[sequences, None]  # [R, 1]
        self.place = torch.arange(width, device=sequences.device)
        row = self.first + self.place  # [R, W]
        rows = problem.tokens
        # offsets that nobody has read may point anywhere
        self.inside = (row < problem.offsets[sequences + 1, None]) & (row >= 0) & (row < rows)
        self.source = torch.where(self.inside, row, 0)
        self.target = torch.where(self.inside, row, rows)

    def heads(self, rows: Tensor) -> Tensor:
        """Rows of keys as float32 ``[R, heads, W, size]``, zeros where there is none."""
        return _heads(rows, self.source, self.inside, self.problem)

    def blocks(self) -> Iterator[_Block]:
        """The queries, as many at once as the workspace takes."""
        if self.problem.last:
            one = self.sequences[:, None]
            yield _Block(
                self, one, torch.ones_like(one, dtype=torch.bool), one, self.inside[:, None]
            )
            return
        count, width = self.inside.shape
        columns = _columns(self.problem, width)
        size = max(1, _floats(self.problem) // (self.problem.heads * count * columns))
        for top in range(0, width, size):
            some = slice(top, top + size)
            inside = self.inside[:, some]
            seen = inside[:, :, None] & self.inside[:, None]
            if self.problem.causal:
                seen &= self.place <= self.place[some, None]
            yield _Block(self, self.source[:, some], inside, self.target[:, some], seen)


class _Block(NamedTuple):
    """Some queries of each sequence of a part."""

    part: _Part
    source: Tensor  # int64 [R, Q], the row of each, 0 where there is none
    inside: Tensor  # bool [R, Q]
    target: Tensor  # int64 [R, Q], the row of each, the last of `_sums` where there is none
    seen: Tensor  # bool [R, Q, W]

    def heads(self, rows: Tensor) -> Tensor:
        """Rows of queries as float32 ``[R, heads, Q, size]``, zeros where there is none."""
        return _heads(rows, self.source, self.inside, self.part.problem)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``[R, heads, Q, W]``."""
        scores = (queries * self.part.problem.scale) @ keys.transpose(2, 3)
        return scores.masked_fill_(~self.seen[:, None], _OUT)

    def factors(self) -> Tensor:
        """What each weight is multiplied with, float32 ``[R, heads, Q, W]``."""
        problem, first = self.part.problem, self.part.first
        width = self.part.place.shape[0]
        head = torch.arange(problem.heads, device=first.device)[:, None, None]
        c0 = self.source[:, None, :, None] * problem.heads + head  # [R, heads, Q, 1]
        groups = torch.arange((width + 14) // 8, device=first.device)
        c1 = (first // 8 + groups)[:, None, None]  # [R, 1, 1, G]
        numbers = philox.sixteens(problem.seed, philox.STREAM_ATTENTION, c0, c1).flatten(3)
        columns = (first % 8 + self.part.place)[:, None, None]  # [R, 1, 1, W]
        bits = numbers.gather(3, columns.expand(*numbers.shape[:3], width))
        return (bits >= problem.dropped).to(torch.float32) * problem.kept_scale


def _heads(rows: Tensor, source: Tensor, inside: Tensor, problem: Problem) -> Tensor:
    wide = rows.detach()[source].to(torch.float32)
    wide = torch.where(inside[:, :, None], wide, 0)
    return wide.unflatten(2, (problem.heads, problem.size)).transpose(1, 2)
