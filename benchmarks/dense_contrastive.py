"""One training step of FENRec, ICSRec, CL4SRec or DuoRec as published: padded, dense, explicit.

Written from the formulas of the papers and of the published code, for two uses: in float64 it is
what the tests hold our step against, in float32 the step that ours is timed against.  Sequences are
encoded three times, padded to the full length (`dense_encoder`); logits are batch x catalogue, and
a soft label is a dense float64 row beside them; a contrastive term is R x R, FENRec's mixed
negatives R x R x D; its noise is moved by four autograd gradients; CL4SRec's views are made by a
Python loop over the sequences, as its data set makes them.

Where the published code does more than the formulas ask for, this side is favoured: torch's
log-sum-exp stands for the published exponentials, the nearest centroids are found in one call
instead of sequence by sequence on the host, and the positives of ICSRec, FENRec and DuoRec come
chosen, where the published data sets scan or draw them in every step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.methods.settings import MethodConfig

from .dense_encoder import DenseEncoder, Rows


@dataclass(frozen=True)
class Inputs:
    """B training rows, as lists, and what belongs to the step.

    Attributes:
        rows: items of each, oldest first, at most `max_length` of them.
        views: the first and the second view of each row; None: two augmented copies are made.
        targets: the next item of each row.
        windows: the items of each soft label, one to three, the target first; None: hard labels.
        centroids: [C, D]; None: there are no clusters.
        noise: [E, D] standard normal, before it is moved; None: none is used.
        main: whether the hard-negative loss has begun.
    """

    rows: Rows
    views: tuple[Rows, Rows] | None
    targets: Sequence[int]
    windows: Sequence[Sequence[int]] | None
    centroids: Tensor | None
    noise: Tensor | None
    main: bool


class DenseContrastive:
    """The published losses on a published encoder.

    Args:
        encoder: with the weights.
        settings: weights and forms of the losses.
        mask_row: the row of the table that stands for a hidden item.
    """

    def __init__(self, encoder: DenseEncoder, settings: MethodConfig, mask_row: int) -> None:
        self.encoder = encoder
        self.settings = settings
        self.mask_row = mask_row

    def loss(self, step: Inputs) -> Tensor:
        """Mean loss of the rows, 0-d; float64 with soft labels, as published promotion has it."""
        s, encode = self.settings, self.encoder.last
        one, other = step.views or augmented(step.rows, s, self.mask_row)
        hidden, first, second = encode(step.rows), encode(one), encode(other)
        targets = torch.tensor(step.targets, device=hidden.device)
        logits = hidden @ self.encoder.table.T
        if step.windows is None:
            loss = F.cross_entropy(logits, targets)
        else:
            label = self._label(step.windows)
            loss = -(label * F.log_softmax(logits, 1)).sum(1).mean()
        noise = None
        if step.main and step.noise is not None:
            noise = ascended(step.noise.to(logits.dtype), first.detach(), second.detach(), targets)
        loss = loss + s.coarse_weight * self._contrast(first, second, targets, noise, step.main)
        if step.centroids is None:
            return loss
        centroids = step.centroids.to(logits.dtype)
        for view in (first, second):
            distance = (view.detach()[:, None] - centroids).square().sum(2)
            cluster = distance.argmin(1)
            centre = F.normalize(centroids, dim=1)[cluster]
            term = self._contrast(view, centre, cluster, noise, step.main)
            loss = loss + s.fine_weight * term
        return loss

    def _label(self, windows: Sequence[Sequence[int]]) -> Tensor:
        """Dense float64 [B, V]."""
        label = torch.zeros(len(windows), len(self.encoder.table), dtype=torch.float64)
        for row, window in enumerate(windows):
            decay = [self.settings.gamma**k for k in range(len(window))]
            for item, weight in zip(window, decay, strict=True):
                label[row, item] += weight / sum(decay)
        return label.to(self.encoder.table.device)

    def _contrast(
        self, x: Tensor, y: Tensor, labels: Tensor, noise: Tensor | None, main: bool
    ) -> Tensor:
        """Mean over the R = 2 B rows of [x; y]; `labels` int64 [B] may mask false negatives."""
        s = self.settings
        if not s.mask_same:  # a row and its partner alone are no negatives
            labels = torch.arange(len(labels), device=labels.device)
        z = torch.cat((x, y))
        partner = torch.cat((y, x))
        label = torch.cat((labels, labels))
        dropped = label[:, None] == label
        positive, similarity = (z * partner).sum(1), z @ z.T
        scale = s.focal_scale if main else 0.0
        own = self._logit(positive, 0.0, scale)
        blocks = [own[:, None]]
        blocks.append(self._logit(similarity, s.margin, scale).masked_fill(dropped, -torch.inf))
        if noise is not None:
            blocks.append(self._logit(z @ noise.T, s.margin, scale))
        if main and s.mix_weight > 0:
            unit = z / z.norm(dim=1, keepdim=True)
            mixed = s.mix * unit[:, None] + (1 - s.mix) * unit  # [R, R, D]
            mixed = mixed / mixed.norm(dim=2, keepdim=True) * z.norm(dim=1)[:, None]
            u = (z[:, None] * mixed.detach()).sum(2)
            logit = self._logit(u, s.margin, scale) + math.log(s.mix_weight)
            blocks.append(logit.masked_fill(dropped, -torch.inf))
        return (torch.cat(blocks, 1).logsumexp(1) - own).mean()

    def _logit(self, x: Tensor, margin: float, scale: float) -> Tensor:
        t = self.settings.temperature
        return x * (torch.tanh(x / scale) + margin) / t if scale else x / t


def ascended(noise: Tensor, first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Noise after four normalised gradient steps of 1e-3 towards the anchors it is hard for."""
    same = (targets[:, None] == targets) & ~torch.eye(
        len(targets), dtype=torch.bool, device=targets.device
    )
    views = (first @ second.T).masked_fill(same, -torch.inf)
    places = torch.arange(len(targets), device=targets.device)
    for _ in range(4):
        noise = noise.detach().requires_grad_()
        logits = torch.cat((views, first @ noise.T), 1)
        (g,) = torch.autograd.grad(F.cross_entropy(logits, places), noise)
        noise = torch.nan_to_num(noise + 1e-3 * g / g.norm(dim=1, keepdim=True))
    return noise.detach()


def augmented(rows: Rows, settings: MethodConfig, mask_row: int) -> tuple[Rows, Rows]:
    """Two views of every row by two different operators of three, drawn by Python's generator."""
    pairs = []
    for row in rows:
        operators = random.sample(range(3), 2)
        pairs.append([_changed(list(row), which, settings, mask_row) for which in operators])
    one, other = zip(*pairs, strict=True)
    return one, other


def _changed(row: list[int], operator: int, settings: MethodConfig, mask_row: int) -> list[int]:
    """A row cropped (0), masked (1) or with a window of it shuffled (2)."""
    share = (settings.crop, settings.mask, settings.reorder)[operator]
    size = int(share * len(row) + 1e-9)
    if operator == 1:
        for place in random.sample(range(len(row)), size):
            row[place] = mask_row
        return row
    size = max(size, 1)
    begin = random.randint(0, len(row) - size)
    window = row[begin : begin + size]
    if operator == 0:
        return window
    random.shuffle(window)
    return [*row[:begin], *window, *row[begin + size :]]
