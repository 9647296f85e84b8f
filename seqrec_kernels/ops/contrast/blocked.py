"""The contrastive losses in blocks of rows: torch only, any device. Formulas: ``problem.py``.

**A block** is some rows against everything they are contrasted with, side by side: the K negatives,
the E noise rows (one product for both), the K mixed negatives, which follow from the first part and
two norms. One softmax over that width gives each row's probabilities among its negatives and their
log-sum-exp ``l_r``; then

    loss_r = log(1 + e^(l_r - p_r)),     d loss_r / d p_r = -v_r,     v_r = sigmoid(l_r - p_r)

small losses keep their digits, and a row's factor (``v_r``, the upstream gradient, constants) is
multiplied into the thin operand of each product, never into the block.

**Half angles.** torch's tanh costs six times its sigmoid on a CPU (2.5 against 0.42 ns an element,
one core of an AMD EPYC). With ``y = 2 s / f``, ``g = sigmoid(y)`` and ``mu = (margin - 1) / 2``,

    s (tanh(s/f) + margin) = f y (g + mu),      its derivative by s = 2 (g + mu + y g (1 - g))

so products are made with anchors scaled by ``2 / f`` (by ``1 / temperature`` for plain logits), and
the last term is torch's own sigmoid backward. ``g`` is good to 9e-8.

**Left out** pairs get ``_OUT`` added to their logit before the softmax: far below every logit, yet
finite, so that a row with nothing kept still has a softmax, and ``v_r = 0``. Ids are replaced by
their places in a sorted list, which float32 holds exactly and compares at vector speed.

**Two plans.** *One pass* (CPU, mean or sum with a gradient wanted): a block's gradients are formed
while its probabilities are there, and the upstream gradient multiplies them in the backward.
*Recompute* (everything else): the backward makes each block again; nothing is saved, and mix ratios
are drawn again from their counters.

**Memory.** One workspace a call; beside it only matrices of the inputs' shapes. Drawing ratios
takes a few int64 tensors of a block's size more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.backend import not_float64 as unsupported
from seqrec_kernels.ops.contrast.problem import LEAST_SQUARE, Problem

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

_OUT = -1.7e38


class Tiles(NamedTuple):
    """Block sizes; tests make them tiny."""

    floats: int = (
        2**20
    )  # of the workspace (4 MiB): a call on a block costs 2 us beside its work ...
    least_rows: int = 8  # ... but never fewer rows than these,
    most_rows: int = 128  # and never more
    cuda: int = 16  # as much more of floats and most_rows on a GPU


TILES = Tiles()


def forward(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """The reduced loss, and the finished gradients after one pass.

    Args:
        needs: whether anchors, positives, negatives and noise want a gradient.
    """
    rows = problem.anchors.shape[0]
    scale = 1 / max(rows, 1) if problem.reduction == "mean" else 1.0
    upstream = None
    if _one_pass(problem, needs):
        upstream = problem.anchors.new_full((rows,), scale, dtype=torch.float32)
    losses, gradients = _contrast(problem, upstream, needs)
    return losses if problem.reduction == "none" else losses.sum() * scale, gradients


def backward(
    grad: Tensor, problem: Problem, saved: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients wanted, in the order anchors, positives, negatives, noise."""
    wanted = _wanted(problem, needs)
    if _one_pass(problem, needs):
        found = [part * grad for part in saved]
    else:
        rows = problem.anchors.shape[0]
        scale = 1 / max(rows, 1) if problem.reduction == "mean" else 1.0
        _, found = _contrast(problem, (grad.to(torch.float32) * scale).expand(rows), needs)
    return [part.to(t.dtype) for part, t in zip(found, wanted, strict=True)]


def saved_shapes(problem: Problem, needs: list[bool]) -> list[tuple[int, ...]]:
    """Shapes of what ``forward`` saves, all float32: the registration's fake mirrors them."""
    if not _one_pass(problem, needs):
        return []
    return [tuple(t.shape) for t in _wanted(problem, needs)]


def _wanted(problem: Problem, needs: list[bool]) -> list[Tensor]:
    pairs = zip(problem[:4], needs, strict=True)
    return [t for t, need in pairs if need and t is not None]


def _one_pass(problem: Problem, needs: list[bool]) -> bool:
    return problem.reduction != "none" and any(needs) and problem.anchors.device.type == "cpu"


def _contrast(
    problem: Problem, upstream: Tensor | None, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Losses ``[R]`` and, for an upstream gradient ``[R]``, the float32 gradients wanted."""
    scene = _Scene(problem)
    positive, slope = scene.positive()
    lse = torch.full_like(positive, _OUT)
    sums = None if upstream is None else _Gradients(scene, needs)
    block: _Block | None = None
    for top, end in scene.blocks():
        block = block or _Block(scene, end - top)
        lse[top:end] = block.fill(top, end)
        if sums is not None and upstream is not None:
            share = torch.sigmoid(lse[top:end] - positive[top:end])
            block.add_to(sums, share.mul_(upstream[top:end]).mul_(scene.slope))
    below = lse - positive
    losses = torch.logaddexp(below, torch.zeros_like(below))
    if sums is None or upstream is None:
        return losses, []
    return losses, sums.finished(torch.sigmoid(below).mul_(upstream).mul_(-slope))


# ---- what all blocks share -----------------------------------------------------------------------


class _Scene:
    """The operands of a call in float32, scaled once.

    ``y = unit * s``; a finished logit is ``gain * y * (g + offset)``, its derivative by ``s`` is
    ``slope * (g + offset + y g (1 - g))``; of plain logits ``y`` and ``slope``.
    """

    def __init__(self, problem: Problem) -> None:
        focal, temperature = problem.focal_scale, problem.temperature
        self.problem = problem
        self.focal = focal is not None
        self.paper = problem.form == "paper" and self.focal
        self.unit = 1 / temperature if focal is None else 2 / focal
        self.gain = 1.0 if focal is None else focal / temperature
        self.slope = (1 if focal is None else 2) / temperature
        self.offset = -0.5 if self.paper else (problem.margin - 1) / 2

        self.anchors = problem.anchors.detach().to(torch.float32) * self.unit
        self.positives = problem.positives.detach().to(torch.float32)
        others = [t.detach() for t in (problem.negatives, problem.noise) if t is not None]
        self.others = torch.cat([t.to(torch.float32) for t in others])
        self.negatives = problem.negatives.shape[0]
        self.plain = self.others.shape[0]
        self.mixed = self.negatives if problem.mix_weight > 0 else 0
        self.width = self.plain + self.mixed
        self.left_out = problem.anchor_ids is not None and self.negatives > 0
        if self.left_out:
            self.ids = _places(problem)
        if self.mixed:
            self.length, self.inverse_length = _lengths(self.anchors)
            self.other_length, self.other_inverse = _lengths(self.others[: self.negatives])
            self.there = (self.inverse_length > 0).to(torch.float32)[:, None]
            self.beta = self.length.new_full((1, 1), 1 - problem.mix_low)

    def positive(self) -> tuple[Tensor, Tensor]:
        """The logits of the positives and their derivatives by the similarity, ``[R]``."""
        y = (self.anchors * self.positives).sum(1)
        if not self.focal:
            return y, torch.full_like(y, self.slope)
        y, tanh = y / 2, torch.tanh(y / 2)
        return self.gain * y * tanh, (tanh + y * (1 - tanh * tanh)) * (self.slope / 2)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, all but the last as long as the workspace allows; none without width."""
        if self.width == 0:
            return
        more = TILES.cuda if self.anchors.is_cuda else 1
        rows = TILES.floats * more // (3 * (self.width + self.mixed))
        rows = min(max(rows, TILES.least_rows), TILES.most_rows * more)
        for top in range(0, self.anchors.shape[0], rows):
            yield top, min(top + rows, self.anchors.shape[0])


def _places(problem: Problem) -> tuple[Tensor, Tensor]:
    """Equal numbers for equal ids, ``[R, 1]`` and ``[K]``, in a float that holds them all."""
    assert problem.anchor_ids is not None and problem.negative_ids is not None
    ids = torch.cat([problem.anchor_ids, problem.negative_ids])
    exact = torch.float32 if ids.shape[0] <= 2**24 else torch.float64
    places = torch.searchsorted(ids.sort()[0], ids).to(exact)
    rows = problem.anchor_ids.shape[0]
    return places[:rows, None], places[rows:]


def _lengths(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Norms ``[N]`` and their inverses, 0 for 0; float64 holds the squares of any float32."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    inverse = torch.where(norms > torch.finfo(torch.float32).tiny, 1 / norms, 0)
    return norms.to(torch.float32), inverse.to(torch.float32)


class _Gradients:
    """Buffers of the gradients wanted, float32."""

    def __init__(self, scene: _Scene, needs: list[bool]) -> None:
        self.scene = scene
        self.anchors, self.positives, self.negatives, self.noise = (
            scene.anchors.new_zeros(t.shape) if need and t is not None else None
            for t, need in zip(scene.problem[:4], needs, strict=True)
        )
        # what multiplies each negative's own direction, in the paper's form
        self.own = scene.anchors.new_zeros(scene.mixed if scene.paper else 0)

    def finished(self, pull: Tensor) -> list[Tensor]:
        """The gradients with the positives' part, ``pull`` being d loss / d similarity, ``[R]``."""
        scene = self.scene
        if self.anchors is not None:
            self.anchors.addcmul_(scene.positives, pull[:, None])
        if self.positives is not None:
            torch.mul(scene.anchors, pull[:, None] / scene.unit, out=self.positives)
        if self.negatives is not None and self.own.shape[0] > 0:
            self.own *= scene.other_inverse
            self.negatives.addcmul_(scene.others[: scene.negatives], self.own[:, None])
        found = (self.anchors, self.positives, self.negatives, self.noise)
        return [part for part in found if part is not None]


# ---- a block -------------------------------------------------------------------------------------


class _Block:
    """The workspace, and the block of rows that stands in it."""

    def __init__(self, scene: _Scene, rows: int) -> None:
        self.scene = scene
        self._wide = scene.anchors.new_empty(3, rows * scene.width)
        self._narrow = scene.anchors.new_empty(3, rows * scene.negatives)

    def fill(self, top: int, end: int) -> Tensor:
        """Makes the probabilities of rows ``top .. end``; returns the LSE of their negatives."""
        scene, count = self.scene, end - top
        self.rows = slice(top, end)
        wide = self._wide[:, : count * scene.width].view(3, count, scene.width)
        narrow = self._narrow[:, : count * scene.negatives].view(3, count, scene.negatives)
        self.y, self.p, self.g = y, p, g = wide.unbind()
        self.equal, self.cosine, self.inverse = narrow.unbind()
        torch.mm(scene.anchors[top:end], scene.others.t(), out=y[:, : scene.plain])
        if scene.mixed:
            self._mix(y[:, : scene.negatives], y[:, scene.plain :])
        if scene.focal:
            torch.sigmoid(y, out=g)
            torch.mul(y, scene.gain * scene.offset, out=p)
            p.addcmul_(y, g, value=scene.gain)
        else:
            p.copy_(y)
        if scene.paper and scene.problem.margin != 0:
            p[:, : scene.plain].add_(scene.problem.margin / scene.problem.temperature)
        if scene.mixed:
            p[:, scene.plain :].add_(math.log(scene.problem.mix_weight))
        if scene.left_out:
            torch.eq(scene.ids[0][top:end], scene.ids[1], out=self.equal)
            p[:, : scene.negatives].add_(self.equal, alpha=_OUT)
            if scene.mixed:
                p[:, scene.plain :].add_(self.equal, alpha=_OUT)
        high = p.amax(1)
        torch.softmax(p, 1, out=p)
        return high - p.amax(1).log_()

    def _mix(self, y: Tensor, u: Tensor) -> None:
        """Writes the mixed similarities ``u`` that belong to ``y``; keeps the cosine and 1/D."""
        scene, rows, inverse = self.scene, self.rows, self.inverse
        low, high = scene.problem.mix_low, scene.problem.mix_high
        there, length = scene.there[rows], scene.length[rows, None]
        torch.mul(y, scene.other_inverse, out=self.cosine)
        self.cosine *= scene.inverse_length[rows, None]
        # a negative of norm 0 keeps its beta: its mixed negative is 0 either way
        if low == high:
            self.alpha, self.beta = there * low, scene.beta
            square = (self.alpha * self.alpha).add_((1 - low) ** 2)
            torch.add(square, self.cosine, alpha=2 * low * (1 - low), out=inverse)
            # (alpha a) b + beta y in one go
            along = (self.alpha * length)[:, 0]
            torch.addr(y, along, scene.other_length, beta=1 - low, out=u)
        else:
            ratios = self._ratios()
            self.alpha, self.beta = ratios * there, 1 - ratios
            torch.mul(self.alpha, self.beta, out=inverse)
            inverse.mul_(self.cosine).mul_(2)
            inverse.addcmul_(self.alpha, self.alpha).addcmul_(self.beta, self.beta)
            torch.mul(self.alpha, scene.other_length, out=u)
            u.mul_(length).addcmul_(self.beta, y)
        if _may_vanish(low, high):
            undirected = inverse < LEAST_SQUARE
            inverse.rsqrt_().masked_fill_(undirected, 0)
        else:
            inverse.rsqrt_()
        u *= inverse

    def _ratios(self) -> Tensor:
        problem, device = self.scene.problem, self.scene.anchors.device
        rows = torch.arange(self.rows.start, self.rows.stop, device=device)[:, None]
        columns = torch.arange(self.scene.negatives, device=device)
        drawn = philox.uniform(problem.seed, philox.STREAM_MIX, columns, rows)
        return drawn.mul_(problem.mix_high - problem.mix_low).add_(problem.mix_low)

    def add_to(self, sums: _Gradients, factor: Tensor) -> None:
        """Adds the block's gradients, where d loss / d its LSE is ``factor``, ``[rows]``.

        The block is used up: ``p`` turns into what multiplies the vectors, first the anchors in the
        gradients of the others, then, with the mixed negatives' share, the others in the gradients
        of the anchors.
        """
        scene, rows, y, g, p = self.scene, self.rows, self.y, self.g, self.p
        plain, negatives, mixed = (
            p[:, : scene.plain], p[:, : scene.negatives], p[:, scene.plain :]
        )  # fmt: skip
        anchors = scene.anchors[rows]
        paper = None
        if scene.mixed and scene.paper:
            paper = self._inside(mixed, y[:, scene.plain :])
        if scene.focal:
            torch.ops.aten.sigmoid_backward.grad_input(y, g, grad_input=y)
            if paper is not None:
                y[:, scene.plain :] = 0
            g += scene.offset
            y += g
            p *= y
        if paper is not None:
            negatives += paper[0]
        scaled = anchors * (factor / scene.unit)[:, None]
        if sums.negatives is not None:
            sums.negatives.addmm_(negatives.t(), scaled)
            if paper is not None:
                sums.own.addmv_(paper[1].t(), scene.length[rows] * (factor / scene.unit))
        if sums.noise is not None:
            sums.noise.addmm_(p[:, scene.negatives : scene.plain].t(), scaled)
        if sums.anchors is None:
            return
        out = sums.anchors[rows]
        if scene.mixed:
            mixed *= self.inverse
            own = torch.mul(mixed, self.alpha, out=self.inverse)
            if paper is not None:
                own += paper[1]
            along = (own @ scene.other_length).mul_(scene.inverse_length[rows])
            negatives.addcmul_(mixed, self.beta)
            torch.mm(plain, scene.others, out=out)
            out.addcmul_(anchors, along[:, None])
        else:
            torch.mm(plain, scene.others, out=out)
        out *= factor[:, None]

    def _inside(self, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The paper's form inside the tanh, ``w = a b F(c)``: ``F'`` and ``F - F' c`` of each pair,
        multiplied by its part of the derivative, in the units of ``slope``."""
        alpha, beta, cosine, inverse = self.alpha, self.beta, self.cosine, self.inverse
        # tanh, not half angles: 1 - tanh^2 of a large similarity is all there is in the result
        tanh = torch.tanh(u / 2)
        part = p * u * (1 - tanh * tanh) / 4
        value = (alpha + beta * cosine) * inverse
        slope = beta * beta * (beta + alpha * cosine) * inverse**3
        return part * slope, part * (value - slope * cosine)


def _may_vanish(low: float, high: float) -> bool:
    """Whether a ratio in ``[low, high]`` can make a direction vanish: beside 1/2, where anchor and
    negative are opposite, and beside 1, where the anchor is 0."""
    return (low < 0.51 and high > 0.49) or high > 0.99
