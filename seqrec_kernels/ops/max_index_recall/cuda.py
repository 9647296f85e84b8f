"""The largest of one column on a GPU, in CUDA C++ around which Python only allocates.

``best_column`` sums the queries in float64 and leaves the column's place on the device. Up to
``ROOM`` items are *selected*: ``column_keys`` reads the column once, from where it lies, and keeps
the n best keys of every ``PART`` items; ``best_keys`` keeps those of ``KEYS`` keys until one block
can put the rest in order. For more the column is *sorted*, by the stable counting sort of the
sampled losses (``sort_slots``), 16 bytes an item. Nothing is read back by the host.

The same programs run on the CPU, which is how they are tested without a GPU. On no GPU has this
been timed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import cuda_unsupported as unsupported

__all__ = ["forward", "unsupported"]

ROOM = 1024  # ids that a block puts in order; tests make it and KEYS tiny
KEYS = 16384  # keys of a block
PART, ROWS = 4096, 256  # kPart and kRows of csrc/common/max_index_recall.h


def forward(queries: Tensor, items: Tensor, n: int, first_item: int) -> Tensor:
    """Ids ``[n]``, largest first, ties by lowest id."""
    library = torch.ops.seqrec_native
    queries, items = queries.detach(), items.detach()[first_item:]
    (batch, width), count = queries.shape, items.shape[0]
    sums = queries.new_empty((-(-batch // ROWS), width), dtype=torch.float64)
    column = queries.new_empty(1, dtype=torch.int64)
    library.best_column(queries, sums, column)
    if n > ROOM:
        pairs, places = (queries.new_empty((2, count), dtype=torch.int32) for _ in range(2))
        counts = pairs.new_empty(256 * (-(-count // PART) + 1))
        library.column_numbers(items, column, pairs[0])
        library.sort_slots(pairs, places, counts, 4)
        # an even number of rounds: the result is in row 0; -1 is the largest unsigned number
        return torch.where(pairs[0, :n] == -1, -1, places[0, :n].long() + first_item)
    keys = column.new_empty(-(-count // PART) * n)
    library.column_keys(items, column, first_item, n, keys)
    while keys.shape[0] > max(KEYS, 2 * n):
        fewer = keys.new_empty(-(-keys.shape[0] // max(KEYS, 2 * n)) * n)
        library.best_keys(keys, max(KEYS, 2 * n), n, fewer)
        keys = fewer
    found = queries.new_empty((1, n), dtype=torch.int64)
    library.select_keys(keys[None], 0, found.new_empty((1, n), dtype=torch.float32), found)
    return found[0]
