"""The best k items on the GPU: a product tile by tile, and its best selected in CUDA C++.

**Tiles.** ``torch.mm`` scores a block of queries against ``WIDTH`` items at a time, in one product
shape (``ops/scoring.py``), into a workspace that a second-level cache can hold.

**Selection.** ``select_scores`` (``csrc/cuda/catalog_topk.cu``) keeps the k best keys of every
``PART`` scores; seen items are left out there, from the CSR. ``select_keys`` takes the k best of
what all parts of a row have kept. A key orders by score descending and id ascending, so both are
exact for any k, ties included. The program is ``csrc/common/select.h``, which runs on the CPU too:
that is how it is tested without a GPU. Nothing is read back by the host.

**Memory.** Beside the tile, ``8 min(k, PART)`` bytes a part and row; as many rows at a time as fit
into ``WORKSPACE``, and at least 16.

On no GPU has this been timed. Triton's path, which writes no score, stands before it until it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels.native import cuda_unsupported as unsupported
from seqrec_kernels.native import from_first
from seqrec_kernels.ops.scoring import ScoreTiles, exact_products
from seqrec_kernels.types import SeenItems

__all__ = ["forward", "unsupported"]

ROWS, WIDTH = 256, 32768  # a product tile, 32 MiB; tests make all of these tiny
PART = 8192  # scores of a thread block; WIDTH is a multiple of it
WORKSPACE = 128 << 20  # bytes of keys at a time


def forward(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    seen: SeenItems | None,
) -> tuple[Tensor, Tensor]:
    """Scores and ids ``[B, k]``, best first, ties by lowest id."""
    select = torch.ops.seqrec_native
    batch, count = queries.shape[0], items.shape[0] - first_item
    _, bias, (offsets, ids, rows) = from_first(items, item_bias, first_item, seen)
    best = queries.new_empty((batch, k), dtype=torch.float32)
    found = queries.new_empty((batch, k), dtype=torch.int64)
    kept = min(k, PART)  # keys of a part
    width = -(-count // PART) * kept
    most = max(16, min(ROWS, WORKSPACE // (8 * max(width, 1)) // 16 * 16))
    with exact_products(queries.device.type):
        tiles = ScoreTiles(queries, items, None, first_item, most, WIDTH)
        keys = queries.new_empty((tiles.rows, width), dtype=torch.int64)
        for top, end in tiles.blocks():
            held = keys[: end - top]
            users, lists = None if rows is None else rows[top:end], offsets
            if offsets is not None and rows is None:
                lists = offsets[top : end + 1]
            for start in tiles.starts():
                stop = min(start + tiles.width, count)
                part = held[:, start // PART * kept : -(-stop // PART) * kept]
                select.select_scores(
                    tiles.tile(start)[:, : stop - start],
                    None if bias is None else bias[start:stop],
                    *(start, PART, kept, first_item, items.shape[0]),
                    *(lists, ids, users),
                    part,
                )
            select.select_keys(held, first_item, best[top:end], found[top:end])
    return best, found
