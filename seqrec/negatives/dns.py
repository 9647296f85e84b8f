"""Dynamic negative sampling: of uniform candidates, those that the model now ranks highest.

DNS (Zhang et al., "Optimizing Top-N Collaborative Filtering via Dynamic Negative Item Sampling",
SIGIR 2013) takes the best of `pool` candidates; DNS+, DNS(M, N) in Shi et al., "On the Theories
Behind Hard Negative Sampling for Recommendation" (WWW 2023), one of the `top_m` best, uniformly.
Candidates are drawn with replacement; a repeated one counts once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.data.philox import STREAM_NEGATIVES
from seqrec.negatives.base import Question, Sampler, step_seeds
from seqrec.negatives.histories import Histories
from seqrec.negatives.settings import NegativesConfig
from seqrec.negatives.unseen import Unseen
from seqrec_kernels import rerank_negatives


class DNS(Sampler):
    """`count` draws among the best candidates of a row, independent of each other."""

    def __init__(self, settings: NegativesConfig, warmup_epochs: int = 0) -> None:
        super().__init__(settings, warmup_epochs)
        self.top_m = settings.top_m if settings.sampler.endswith("+") else 1

    def prepare(self, histories: Histories) -> None:
        self._unseen = Unseen(histories)

    def draw(self, question: Question) -> Tensor:
        pool = self._unseen.draw(question.rows, self.settings.pool, question.seed, STREAM_NEGATIVES)
        drawn = [
            rerank_negatives(question.queries, question.items, pool, self.top_m, seed=seed)
            for seed in step_seeds(question.seed, self.settings.count)
        ]
        return torch.stack(drawn, 1)
