"""Negatives with something of the positive in them: positive mixing, of MixGCF.

Huang et al., "MixGCF: An Improved Training Method for Graph Neural Network-based Recommender
Systems" (KDD 2021), without its graph: the negative of a target p is no item but the vector

    a E[p] + (1 - a) E[v],   a uniform in [0, 1), one a target,

v the candidate whose mixed vector the model ranks highest.  Its score is a (q . E[p]) +
(1 - a) (q . E[v]), so v is what DNS chooses, or, among the `top_m` best (mixgcf+), DNS+.  Gradients
reach E[p] and E[v] through it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.data.philox import STREAM_POSITIVE_MIX
from seqrec.negatives.base import Question
from seqrec.negatives.dns import DNS
from seqrec_kernels import philox


class MixGCF(DNS):
    """DNS, or DNS+, with the positive mixed into what it draws."""

    def classes(self, items: Tensor, question: Question, drawn: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.arange(len(drawn), device=drawn.device)
        share = philox.uniform(question.seed, STREAM_POSITIVE_MIX, row)[:, None, None]
        share = share.to(items.dtype)
        positives = F.embedding(question.positives.clamp(min=0), items)[:, None]
        mixed = share * positives + (1 - share) * F.embedding(drawn.clamp(min=0), items)
        rows = torch.arange(drawn.numel(), device=drawn.device).view_as(drawn) + len(items)
        return torch.cat((items, mixed.flatten(0, 1))), torch.where(drawn < 0, -1, rows)
