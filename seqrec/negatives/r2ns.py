"""R2NS: recall globally, infuse at random, re-rank for the row, and narrow from epoch to epoch.

With q_1 .. q_M the queries of a batch and E the item table ("R2NS", WWW 2026,
doi 10.1145/3774904.3792360, equations 4 to 17):

    e = mean of the queries,   i = arg-max of e's coordinates,
    C_top = the `recall` items with the largest E[v, i]              (shared by all rows)
    C_rand = `pool` uniform items the row's user has not met          (each row its own)
    negative = one of the M(epoch) best of C_top and C_rand by q . E[v], uniformly

M falls from all candidates to `top_m` (`seqrec.negatives.curriculum`).  The published form leaves
C_top as it is, so a target can be a negative of itself, and counts a doubly drawn candidate twice;
the corrected one drops from C_top what the user has met, and counts a candidate once.  Both draw
C_rand with replacement, where the published code draws distinct items: of 100 among 12,101 on
average .41 are doubles.  Under rows = positions, e is the mean over all places of the batch.

The ablations are settings: No-WS `method.warmup_epochs = 0`, No-GR `recall = 0` (and twice the
`pool`), No-DI `pool = 0`, No-CRR `decay = 0`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.data.philox import STREAM_NEGATIVES
from seqrec.negatives.base import Question, Sampler, step_seeds
from seqrec.negatives.curriculum import narrowed
from seqrec.negatives.histories import Histories
from seqrec.negatives.unseen import Unseen
from seqrec_kernels import catalog_topk, max_index_recall, rerank_negatives


class R2NS(Sampler):
    """`count` draws among the M best candidates of a row, independent of each other."""

    def prepare(self, histories: Histories) -> None:
        self._unseen = Unseen(histories)
        last = self.warmup_epochs + self.settings.terms + 1  # nothing changes behind it
        known = torch.tensor([self.top_m(epoch) for epoch in range(last + 1)])
        self._top_m = known.to(histories.device)

    def top_m(self, epoch: int) -> int:
        """M in an epoch (from 0) of the run."""
        settings = self.settings
        return narrowed(
            epoch - self.warmup_epochs,
            settings.recall + settings.pool,
            decay=settings.decay,
            terms=settings.terms,
            smallest=settings.top_m,
            indexing=settings.indexing,
        )

    def draw(self, question: Question) -> Tensor:
        settings = self.settings
        shared = self._recalled(question) if settings.recall else None
        pool = None
        if settings.pool:
            pool = self._unseen.draw(question.rows, settings.pool, question.seed, STREAM_NEGATIVES)
        published = settings.form == "published"
        drawn = [
            rerank_negatives(
                question.queries,
                question.items,
                pool,
                self._kept(question.epoch),
                shared=shared,
                forbidden=None if published or shared is None else question.rows.seen,
                repeated="keep" if published else "drop",
                seed=seed,
            )
            for seed in step_seeds(question.seed, settings.count)
        ]
        return torch.stack(drawn, 1)

    def facts(self, epoch: int) -> dict[str, int | float]:
        return {"top_m": self.top_m(epoch)}

    def _kept(self, epoch: int | Tensor) -> int | Tensor:
        """M, where a captured step reads it."""
        if isinstance(epoch, int):
            return self.top_m(epoch)
        return self._top_m.index_select(0, epoch.clamp(max=len(self._top_m) - 1).view(1))[0]

    def _recalled(self, question: Question) -> Tensor:
        """int64 [recall], fewer in a smaller catalogue."""
        queries, items = question.queries, question.items
        # the mean's order of coordinates and items is that of the sum, whatever the tail adds to M
        queries = torch.where(question.positives[:, None] < 0, 0, queries)
        n = min(self.settings.recall, items.shape[0])
        if self.settings.recall_by == "max-index":
            return max_index_recall(queries, items, n)
        return catalog_topk(queries.mean(0, keepdim=True), items, n).ids[0]
