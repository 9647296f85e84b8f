"""One training step of SASRec or R2NS as published: padded, dense, explicit.

SASRec has the softmax over the whole catalogue that our `sasrec` has (Klenitskiy and Vasilev,
RecSys 2023): logits are targets x catalogue.  Published code forms them in the padded places too;
here they are formed where there is a target, which favours this side.

R2NS has binary cross-entropy against one negative a row.  Its repository is not to be had; this
follows its paper, and its first author's other code where the paper is silent: the candidates of a
row are sampled from the set of the catalogue less what the user has met, row by row in Python, and
the choice among their best is a loop over the rows as well.  The catalogue's set is made once and
not once a row, and the warm-up samples one candidate and not all, which favours this side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.negatives.settings import NegativesConfig

from .dense_encoder import DenseEncoder, Rows


@dataclass(frozen=True)
class Inputs:
    """Training rows, as lists.

    Attributes:
        rows: items of each, oldest first, at most `max_length` of them.
        targets: the next items; of each row one, or one a place.
        met: what each row's user has met, the target among it; unused by a softmax.
        top_m: how many of the best candidates are drawn from; 0: any (the warm-up).
        candidates: int64 [B, C], each row's own, to choose from in place of drawn ones.
        negatives: int64 [B], in place of drawn ones.
    """

    rows: Rows
    targets: Sequence[int]
    met: Rows = ()
    top_m: int = 0
    candidates: Tensor | None = None
    negatives: Tensor | None = None


class DenseSASRec:
    """Cross-entropy over all rows of the table.

    Args:
        encoder: with the weights.
        prefixes: the last place of a row predicts, not every one.
    """

    def __init__(self, encoder: DenseEncoder, prefixes: bool) -> None:
        self.encoder = encoder
        self.prefixes = prefixes

    def loss(self, step: Inputs) -> Tensor:
        """Mean loss of the targets, 0-d."""
        encode = self.encoder.last if self.prefixes else self.encoder.everywhere
        logits = encode(step.rows) @ self.encoder.table.T
        return F.cross_entropy(logits, torch.tensor(step.targets, device=logits.device))


class DenseR2NS:
    """Binary cross-entropy against one hard negative of each row.

    Args:
        encoder: with the weights.
        settings: how many candidates there are.
    """

    def __init__(self, encoder: DenseEncoder, settings: NegativesConfig) -> None:
        self.encoder = encoder
        self.settings = settings
        self._catalogue = frozenset(range(len(encoder.table)))

    def loss(self, step: Inputs) -> Tensor:
        """Mean loss of the rows, 0-d."""
        hidden, table = self.encoder.last(step.rows), self.encoder.table
        targets = torch.tensor(step.targets, device=hidden.device)
        negatives = step.negatives
        if negatives is None:
            negatives = self.drawn(hidden.detach(), step)
        a = (hidden * F.embedding(targets, table)).sum(1)
        b = (hidden * F.embedding(negatives, table)).sum(1)
        return (F.softplus(-a) + F.softplus(b)).mean()

    def drawn(self, hidden: Tensor, step: Inputs) -> Tensor:
        """A negative of each row: int64 [B]."""
        candidates, table = step.candidates, self.encoder.table.detach()
        if candidates is None:
            pool = self.settings.pool if step.top_m else 1
            candidates = self._unmet(step.met, pool).to(hidden.device)
        if step.top_m == 0:
            return candidates[:, 0]
        strongest = hidden.mean(0).argmax()
        shared = table[:, strongest].topk(self.settings.recall).indices
        candidates = torch.cat((candidates, shared.expand(len(candidates), -1)), 1)
        pairs = zip(hidden, candidates, strict=True)
        return torch.stack([self._one(*pair, step.top_m) for pair in pairs])

    def _one(self, query: Tensor, candidates: Tensor, top_m: int) -> Tensor:
        """One of a row's `top_m` best candidates: int64, 0-d."""
        best = (self.encoder.table.detach()[candidates] @ query).topk(top_m).indices
        return candidates[best[random.randrange(top_m)]]

    def _unmet(self, met: Rows, pool: int) -> Tensor:
        """Uniform candidates of each row that its user has not met: int64 [B, pool], host."""
        allowed = (list(self._catalogue.difference(items)) for items in met)
        return torch.tensor([random.sample(row, pool) for row in allowed])
