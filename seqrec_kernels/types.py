"""The small records operators take and return."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class SeenItems(NamedTuple):
    """Which items each row of a batch has already met, as one CSR.

    The items of batch row ``b`` are ``ids[offsets[u]:offsets[u + 1]]`` with ``u = rows[b]``, or
    ``u = b`` without ``rows``. One CSR of a whole data set serves every batch, and no shape depends
    on the data. Ids may stand in any order, a repeated id counts once, and ids below an operator's
    ``first_item`` are ignored.

    Attributes:
        offsets: int64 ``[U + 1]``, starting at 0 and never falling.
        ids: int64 ``[nnz]``, rows of the item table.
        rows: int64 ``[B]``, the CSR row of each batch row, or None, in which case ``U == B``.
    """

    offsets: Tensor
    ids: Tensor
    rows: Tensor | None = None

    @classmethod
    def from_lists(
        cls, lists: Iterable[Iterable[int]], device: torch.device | str | None = None
    ) -> SeenItems:
        """Builds the CSR of ``lists``, one list of item ids a batch row."""
        sets = [list(items) for items in lists]
        lengths = torch.tensor([len(items) for items in sets], dtype=torch.int64)
        offsets = torch.zeros(len(sets) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        ids = torch.tensor([item for items in sets for item in items], dtype=torch.int64)
        return cls(offsets.to(device), ids.to(device))

    def to(self, device: torch.device | str) -> SeenItems:
        """The same record on ``device``."""
        rows = None if self.rows is None else self.rows.to(device)
        return SeenItems(self.offsets.to(device), self.ids.to(device), rows)


class Rank(NamedTuple):
    """Where targets stand among their candidates.

    Attributes:
        greater: int64, candidates that score above the target; -1 where there is no target.
        equal: int64, candidates that tie with it (the target itself not counted); -1 likewise.
    """

    greater: Tensor
    equal: Tensor


class TopK(NamedTuple):
    """The best items of each row, best first, ties by lowest id.

    Attributes:
        scores: ``[B, k]``, padded with -inf.
        ids: int64 ``[B, k]``, rows of the item table, padded with -1.
    """

    scores: Tensor
    ids: Tensor


def csr_places(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Owner and place of every entry of the runs ``starts[i] .. starts[i] + lengths[i] - 1``.

    Their number is data: on CUDA this waits for the device.
    """
    runs = torch.arange(starts.shape[0], device=starts.device)
    owner = torch.repeat_interleave(runs, lengths)
    before = lengths.cumsum(0) - lengths
    within = torch.arange(owner.shape[0], device=starts.device) - before[owner]
    return owner, starts[owner] + within
