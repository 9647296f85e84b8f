"""One candidate a row, drawn among its best, on a GPU in CUDA C++: one kernel, a block a row.

A block scores the row's slots, shared and own, from where the items lie, leaves out what is no
candidate, and finds the id at the drawn place by counting (``csrc/common/rerank_rows.h``): nothing
is gathered and nothing sorted. The shared items are no matrix product here. Their rows are the same
for every block, which is what a cache is for, and an item scores equal bits wherever it stands.
Forbidden and repeated ids are looked for one by one, the time of which grows with the square of the
number of slots: some hundreds are what this is made for.

**Memory.** Four bytes a slot, for as many rows at a time as fit into ``WORKSPACE``. Nothing is read
back by the host.

The same program runs on the CPU, which is how it is tested without a GPU. On no GPU has this been
timed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import cuda_unsupported as unsupported
from seqrec_kernels.ops.rerank_negatives.problem import Problem

__all__ = ["forward", "unsupported"]

WORKSPACE = 64 << 20  # bytes; tests make it tiny


def forward(problem: Problem) -> Tensor:
    """The id each row draws, ``[B]``."""
    queries, items, candidates, shared, forbidden, *numbers = problem
    queries, items = (
        t if t.stride(1) == 1 else t.contiguous() for t in (queries.detach(), items.detach())
    )
    lists = (None, None, None) if forbidden is None else forbidden
    parts = [None if part is None else part.contiguous() for part in lists]
    batch, own = queries.shape[0], 0 if candidates is None else candidates.shape[1]
    slots = own + (0 if shared is None else shared.shape[0])
    found = queries.new_empty((batch,), dtype=torch.int64)
    size = max(1, min(batch, WORKSPACE // (4 * max(slots, 1))))
    workspace = queries.new_empty((size, slots), dtype=torch.int32)
    for top in range(0, batch, size):
        torch.ops.seqrec_native.rerank_rows(
            queries, items, candidates, shared, *parts, *numbers, top, workspace,
            found[top : top + size],
        )  # fmt: skip
    return found
