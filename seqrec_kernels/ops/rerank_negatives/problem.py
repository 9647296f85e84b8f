"""What re-ranking asks for, as every implementation takes it, and how a row draws.

**Candidates.** The C slots of a row's own and the S shared ones. A slot is *allowed* when it holds
an id, the id is not forbidden to the row, its score is a number and, with ``drop``, no other
allowed slot of the row holds the same id. Allowed slots stand in the order (score descending, id
ascending); with ``drop=False`` the slots of one id stand beside each other.

**Draw.** With ``a`` allowed slots a row keeps ``m = min(top_m, a)`` and returns the id at place
``(w m) >> 32``, ``w`` the first word of Philox stream 2 at counter (row, 0). Every place has a
probability of 1/m up to 2^-32. So only the id at one place of the order is looked for, never the
order: that is selection, not sorting.

**Ids out of range** stand in no slot that is allowed, and make their row's answer -1; so does a
list of forbidden items that lies outside its CSR or names an item outside the table.

Source: R2NS (WWW 2026, doi 10.1145/3774904.3792360), equations 9 to 17.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec_kernels import philox
from seqrec_kernels.types import SeenItems

__all__ = ["Problem", "drawn"]


class Problem(NamedTuple):
    """One call of the family, checked."""

    queries: Tensor  # [B, D]
    items: Tensor  # [V, D]
    candidates: Tensor | None  # int64 [B, C]
    shared: Tensor | None  # int64 [S]
    forbidden: SeenItems | None
    top_m: Tensor  # int64 []
    seed: Tensor  # int64 []
    drop: bool
    first_item: int

    def slots(self, top: int = 0, end: int | None = None) -> Tensor:
        """Ids ``[R, S + C]`` of the rows ``top .. end``, the shared ones first."""
        rows = self.queries[top:end].shape[0]
        parts = [] if self.shared is None else [self.shared.expand(rows, -1)]
        if self.candidates is not None:
            parts.append(self.candidates[top:end])
        return torch.cat(parts, 1)


def drawn(problem: Problem, ids: Tensor, allowed: Tensor, top: int = 0) -> Tensor:
    """The id each row draws, ``[R]``.

    Args:
        ids: ``[R, n]`` in order, the allowed ones in front.
        allowed: int64 ``[R]``, how many there are.
        top: the number of the first row.
    """
    if not ids.shape[1]:
        return torch.full_like(allowed, -1)
    kept = torch.minimum(allowed, problem.top_m).clamp(min=0)
    rows = torch.arange(top, top + ids.shape[0], device=ids.device)
    place = philox.choice(problem.seed, philox.STREAM_RERANK, kept, rows)
    return torch.where(kept > 0, ids.gather(1, place[:, None])[:, 0], -1)
