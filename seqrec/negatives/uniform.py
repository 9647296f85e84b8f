"""Uniform negatives (RNS): every item the user has not met is as likely as the next."""

from __future__ import annotations

from torch import Tensor

from seqrec.data.philox import STREAM_NEGATIVES
from seqrec.negatives.base import Question, Sampler
from seqrec.negatives.histories import Histories
from seqrec.negatives.unseen import Unseen


class Uniform(Sampler):
    """`count` independent draws."""

    def prepare(self, histories: Histories) -> None:
        self._unseen = Unseen(histories)

    def draw(self, question: Question) -> Tensor:
        return self._unseen.draw(
            question.rows, self.settings.count, question.seed, STREAM_NEGATIVES
        )
