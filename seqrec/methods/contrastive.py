"""ICSRec, FENRec, CL4SRec, DuoRec: next-item cross-entropy, and views of a sequence that agree.

ICSRec (Qin et al., WSDM 2024) encodes a training row three times: a = f(input) for the next item,
h = f(input) again under other dropout, g = f(input of another row with the same target).  With the
item table E, B rows and R = 2 B,

    loss = CE(a E^T, label) + coarse NCE(h, g; target)
         + fine (NCE(h, c(h); cluster) + NCE(g, c(g); cluster))

    NCE(x, y; label) = mean over i of the R rows of z = [x; y] of
        -log( e^{p_i} / (e^{p_i} + sum over j with label_j != label_i of e^{z_i . z_j / t}) )

where p_i = z_i . z_partner(i) / t, and the label mask drops the row itself, its partner and every
false negative.  c(h) is the unit centroid of the intent cluster that h is nearest to (by Euclidean
distance to the centroid as it is); the clusters are fitted before every epoch to the encodings of
all training rows, and no gradient reaches them.

FENRec (Huang et al., AAAI 2025) adds soft labels (`seqrec.methods.labels`), and from epoch
`warmup_epochs` on replaces NCE by the loss of `hard_negative_info_nce`: similarities reweighted by
tanh, mixed "enduring" hard negatives, and noise negatives that a few ascent steps have moved
towards the anchors.  Without any of the three settings it is ICSRec.

CL4SRec (Xie et al., ICDE 2022) and DuoRec (Qiu et al., WSDM 2022) have the coarse term alone, with
every other row of the 2 B as a negative, and other views (`seqrec.methods.views`).  So the four are
this one class with other defaults (``presets/<method>/default.toml``), and FENRec's labels and loss
can be laid on any of them: ``method.gamma``, ``method.contrast``.

The mean is over all R rows: `coarse` times it is coarse/2 times the sum of the two directions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import MIX, VIEWS, WEIGHTS, derive
from seqrec.data.store import JaggedBatch, Sequences, SequenceStore, to_device
from seqrec.draws import Randomness, normal
from seqrec.encoders import build_encoder
from seqrec.methods.base import FixedStep, Method, Step
from seqrec.methods.kmeans import KMeans
from seqrec.methods.labels import SoftLabels
from seqrec.methods.views import Views, views_of
from seqrec_kernels import (
    ascend_noise,
    catalog_cross_entropy,
    hard_negative_info_nce,
    info_nce,
)

_ENCODED_AT_ONCE = 1024  # rows, before an epoch


class Batch(NamedTuple):
    """B training rows on the device.

    Attributes:
        sequences: 3 B of them: inputs, first views, second views.
        targets: int64 [B], the next items.
        labels: items int64 [B, T] (-1: none) and weights float32 [B, T] of the cross-entropy;
            None: the target alone.
    """

    sequences: Sequences
    targets: Tensor
    labels: tuple[Tensor, Tensor] | None


class ContrastiveMethod(Method):
    """A sequence encoder trained by cross-entropy and by agreement of views.

    Args:
        config: `method` holds the weights and the forms of the losses.
        n_items: size of the catalogue.
    """

    seeds = ((VIEWS,), (MIX, 0), (MIX, 1), (MIX, 2))

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive(config.training.seed, WEIGHTS))
        self.config = config
        self.settings = config.method
        self.encoder = build_encoder(n_items, config.encoder, generator)
        self.intents = None
        if self.settings.fine_weight > 0:
            self.intents = KMeans(
                self.settings.clusters,
                config.encoder.dim,
                iterations=self.settings.cluster_iterations,
                restarts=self.settings.cluster_restarts,
            )
        # follow from the training sequences
        self._views: Views | None = None
        self._labels: SoftLabels | None = None

    @classmethod
    def not_captured(cls, config: Config) -> str | None:
        return None

    def rows(self, store: SequenceStore) -> int:
        return store.n_prefixes

    def prepare(self, store: SequenceStore) -> None:
        self._views = views_of(store, self.config, self.encoder.n_items)
        if self.settings.gamma > 0:
            self._labels = SoftLabels(store, self.settings.gamma, self.settings.label_place)

    def begin_epoch(self, store: SequenceStore, epoch: int, seed: int) -> None:
        """Fit the intent clusters to the encodings of all training rows.

        Where there are fewer rows than clusters, every row counts several times.
        """
        if self.intents is None:
            return
        points = self.encoded(store)
        times = math.ceil(len(self.intents.centroids) / len(points))
        points = points if times == 1 else points.repeat(times, 1)
        self.intents.fit(points, seed, warm=epoch > 0)

    @torch.no_grad()
    def encoded(self, store: SequenceStore) -> Tensor:
        """All training rows, encoded without dropout: [rows, D]."""
        points = torch.empty(store.n_prefixes, self.encoder.table.shape[1], device=store.device)
        for start in range(0, len(points), _ENCODED_AT_ONCE):
            part = points[start : start + _ENCODED_AT_ONCE]
            rows = np.arange(start, start + len(part))
            part.copy_(self.queries(store.prefix_batch(rows, self.config.encoder.max_length)[0]))
        return points

    def batch(self, store: SequenceStore, rows: np.ndarray, step: Step) -> Batch:
        assert self._views is not None, "prepare was not called"
        sequences, targets = self._views.batch(rows, step)
        labels = None if self._labels is None else self._labels.of(to_device(rows, store.device))
        return Batch(sequences, targets, labels)

    def phase(self, epoch: int) -> str:
        return "main" if self._is_main(epoch) else "warmup"

    def tokens(self, store: SequenceStore, epoch: int) -> np.ndarray:
        assert self._views is not None, "prepare was not called"
        return self._views.tokens(epoch)

    def fixed_batch(
        self, store: SequenceStore, rows: Tensor, capacity: int, step: FixedStep
    ) -> Batch:
        assert self._views is not None, "prepare was not called"
        sequences, targets = self._views.fixed_batch(rows, capacity, step)
        labels = None if self._labels is None else self._labels.of(rows)
        return Batch(sequences, targets, labels)

    def _is_main(self, epoch: int) -> bool:
        """Whether the warm-up is over."""
        return self.settings.contrast == "hard-negative" and epoch >= self.settings.warmup_epochs

    def loss(self, batch: Batch, step: Step | FixedStep) -> Tensor:
        settings, targets = self.settings, batch.targets
        hidden, first, second = self.encoder.last(batch.sequences, step.generator).chunk(3)
        if batch.labels is None:
            loss = catalog_cross_entropy(hidden, self.encoder.table, targets)
        else:
            loss = catalog_cross_entropy(hidden, self.encoder.table, *batch.labels)

        main = self._is_main(step.epoch)
        noise = self._noise(first, second, targets, step.generator) if main else None
        if settings.coarse_weight > 0:
            term = self._contrast(first, second, targets, noise, main, step, 0)
            loss = loss + settings.coarse_weight * term
        if self.intents is not None:
            unit = self.intents.unit()
            for number, view in enumerate((first, second), 1):
                cluster = self.intents.nearest(view)
                term = self._contrast(view, unit[cluster], cluster, noise, main, step, number)
                loss = loss + settings.fine_weight * term
        return loss

    def queries(self, histories: JaggedBatch) -> Tensor:
        return self.encoder.last(histories)

    def items(self) -> Tensor:
        return self.encoder.items

    def _noise(
        self, first: Tensor, second: Tensor, targets: Tensor, generator: Randomness
    ) -> Tensor | None:
        """Normal vectors moved towards the anchors they are hard for; no gradient."""
        count = int(len(targets) * self.settings.noise)
        if count == 0:
            return None
        noise = normal(count, first.shape[1], generator, first.device)
        anchors, positives = first.detach(), second.detach()
        ids = self._ids(targets)
        return ascend_noise(anchors, positives, positives, noise, anchor_ids=ids, negative_ids=ids)

    def _contrast(
        self,
        x: Tensor,
        y: Tensor,
        labels: Tensor,
        noise: Tensor | None,
        main: bool,
        step: Step | FixedStep,
        number: int,
    ) -> Tensor:
        """One of the step's contrastive terms, ``NCE(x, y; labels)`` or what stands in its place.

        Args:
            x, y: [B, D].
            labels: int64 [B].
            noise: [E, D] further negatives of the main phase.
            main: the warm-up is over.
            number: of the term in its step, for its random numbers.
        """
        settings = self.settings
        anchors, partners = torch.cat((x, y)), torch.cat((y, x))
        ids = self._ids(labels).repeat(2)
        if not main:
            return info_nce(
                anchors,
                partners,
                anchors,
                anchor_ids=ids,
                negative_ids=ids,
                temperature=settings.temperature,
            )
        mix, spread = settings.mix, settings.mix_spread
        return hard_negative_info_nce(
            anchors,
            partners,
            anchors,
            noise=noise,
            anchor_ids=ids,
            negative_ids=ids,
            temperature=settings.temperature,
            focal_scale=settings.focal_scale or None,
            margin=settings.margin if settings.focal_scale else 0.0,
            mix=(mix - spread, min(mix + spread, 1.0)) if spread else mix,
            mix_weight=settings.mix_weight,
            seed=step.seed(self.config.training.seed, MIX, number) if spread else 0,
            form=settings.contrast_form,
        )

    def _ids(self, labels: Tensor) -> Tensor:
        """What two rows must share for one to be no negative of the other."""
        if self.settings.mask_same:
            return labels
        return torch.arange(len(labels), device=labels.device)
