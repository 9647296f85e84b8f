"""Popular negatives: chances proportional to a power of the training counts.

An item of count c has the chance c^power / sum, among the items that the user has not met.  Power 1
is in-batch sampling's marginal distribution, .75 that of word2vec (Mikolov et al., "Distributed
Representations of Words and Phrases and their Compositionality", NeurIPS 2013), 0 uniform over what
occurs in training; an item that does not is never drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqrec.data.philox import STREAM_NEGATIVES
from seqrec.negatives.base import Question, Sampler
from seqrec.negatives.histories import Histories
from seqrec.negatives.unseen import Unseen

# widths are integers: a chance of one in a million has 67 of them
_WIDTH = 1 << 26


class Popularity(Sampler):
    """`count` independent draws."""

    def prepare(self, histories: Histories) -> None:
        counts = histories.item_counts
        weights = np.where(counts > 0, np.maximum(counts, 1.0) ** self.settings.power, 0.0)
        chances = weights / weights.sum()
        widths = np.where(counts > 0, np.maximum(np.rint(chances * _WIDTH), 1), 0)
        self._unseen = Unseen(histories, widths.astype(np.int64))
        # an item without a count is neither drawn nor a target: any finite number will do
        log_q = np.log(np.where(counts > 0, chances, 1.0))
        self._log_q = torch.from_numpy(log_q).to(histories.device, torch.float32)

    def draw(self, question: Question) -> Tensor:
        return self._unseen.draw(
            question.rows, self.settings.count, question.seed, STREAM_NEGATIVES
        )

    def log_q(self) -> Tensor:
        return self._log_q
