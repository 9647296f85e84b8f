"""One training step of FENRec as it is published: padded, dense, explicit.

Written from the formulas of the papers and of the published code, for two uses: in float64 it is
what the tests hold our step against, in float32 the step that ours is timed against.  Sequences are
padded from the left to the full length and encoded three times; the soft label is a dense float64
row over the catalogue; the mixed negatives of each contrastive term are an R x R x D tensor; noise
is moved by four autograd gradients.  Where torch has a fused operator for a formula (layer norm,
GELU, log-sum-exp) it is used, which favours this side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.methods.settings import MethodConfig


@dataclass(frozen=True)
class Inputs:
    """B training rows, as lists, and what belongs to the step.

    Attributes:
        inputs, positives: item rows, oldest first, at most `length` of them.
        targets: the next item of each row.
        windows: the items of each soft label, one to three, the target first.
        centroids: [C, D].
        noise: [E, D] standard normal, before it is moved; None: none is used.
        main: whether the warm-up is over.
    """

    inputs: Sequence[Sequence[int]]
    positives: Sequence[Sequence[int]]
    targets: Sequence[int]
    windows: Sequence[Sequence[int]]
    centroids: Tensor
    noise: Tensor | None
    main: bool


class DenseFENRec:
    """The published encoder and its losses.

    Args:
        weights: by the names of our post-norm encoder, in any dtype; leaves with gradients are made
            of them in `dtype`.
        n_items: N; the rows of the table behind them are the padding row and the mask row.
        heads: attention heads.
        dropout: its probability, everywhere; 0 in the tests.
        settings: weights and forms of the losses.
        dtype: of everything but the labels.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        n_items: int,
        heads: int,
        dropout: float,
        settings: MethodConfig,
        dtype: torch.dtype,
    ) -> None:
        self.weights = {
            name: x.detach().to(dtype, copy=True).requires_grad_() for name, x in weights.items()
        }
        self.n_items = n_items
        self.heads = heads
        self.p = dropout
        self.settings = settings
        self.device = self.weights["table"].device
        self.layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("layers."))

    def loss(self, step: Inputs) -> Tensor:
        """Mean loss of the rows, 0-d float64 (as the published promotion to float64 has it)."""
        s = self.settings
        inputs = self._padded(step.inputs)
        hidden = self.encode(inputs)
        first = self.encode(inputs)
        second = self.encode(self._padded(step.positives))
        targets = torch.tensor(step.targets, device=self.device)
        logits = hidden @ self.weights["table"].T
        loss = -(self._label(step.windows) * F.log_softmax(logits, 1)).sum(1).mean()
        noise = None
        if step.main and step.noise is not None:
            noise = ascended(step.noise.to(logits.dtype), first.detach(), second.detach(), targets)
        loss = loss + s.coarse_weight * self._contrast(first, second, targets, noise, step.main)
        centroids = step.centroids.to(logits.dtype)
        for view in (first, second):
            distance = (view.detach()[:, None] - centroids).square().sum(2)
            cluster = distance.argmin(1)
            centre = F.normalize(centroids, dim=1)[cluster]
            term = self._contrast(view, centre, cluster, noise, step.main)
            loss = loss + s.fine_weight * term
        return loss

    def encode(self, padded: Tensor) -> Tensor:
        """[B, L] item rows -> [B, D], the output at the last place."""
        w = self.weights
        x = self._norm(w["table"][padded] + w["places"], "norm")
        x = F.dropout(x, self.p)
        length = padded.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        seen = causal & (padded < self.n_items)[:, None]
        mask = torch.where(seen, 0.0, -10000.0)[:, None]
        for layer in range(self.layers):
            x = self._layer(x, mask, f"layers.{layer}")
        return x[:, -1]

    def _layer(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        rows, length, dim = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, -1).transpose(1, 2)
            for part in self._linear(x, f"{name}.attention.input").split(dim, -1)
        )
        scores = q @ k.mT / math.sqrt(dim // self.heads) + mask
        mixed = (F.dropout(scores.softmax(-1), self.p) @ v).transpose(1, 2).flatten(2)
        mixed = F.dropout(self._linear(mixed, f"{name}.attention.output"), self.p)
        x = self._norm(x + mixed, f"{name}.attention_norm")
        inner = F.gelu(self._linear(x, f"{name}.first"))
        inner = F.dropout(self._linear(inner, f"{name}.second"), self.p)
        return self._norm(x + inner, f"{name}.feed_forward_norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        length = self.weights["places"].shape[0]
        padded = [[self.n_items] * (length - len(row)) + list(row) for row in rows]
        return torch.tensor(padded, device=self.device)

    def _label(self, windows: Sequence[Sequence[int]]) -> Tensor:
        """Dense float64 [B, V]."""
        label = torch.zeros(len(windows), self.weights["table"].shape[0], dtype=torch.float64)
        for row, window in enumerate(windows):
            decay = [self.settings.gamma**k for k in range(len(window))]
            for item, weight in zip(window, decay, strict=True):
                label[row, item] += weight / sum(decay)
        return label.to(self.device)

    def _contrast(
        self, x: Tensor, y: Tensor, labels: Tensor, noise: Tensor | None, main: bool
    ) -> Tensor:
        """Mean over the R = 2 B rows of [x; y]; `labels` int64 [B] mask false negatives."""
        s = self.settings
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
