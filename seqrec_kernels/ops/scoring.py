"""Score tiles for the ranking operators: one float32 product shape, and which entries to override.

**Equal rows, equal bits.** Ranking compares scores, so two equal item rows must score equal bits
wherever they stand in the table, and a target must meet the bits its own column has. A BLAS does
not promise that: it covers a product with register tiles and finishes the edges with other code,
which adds in another order. Measured with MKL (torch 2.13, AVX-512): in ``q [b, D] @ e^T [D, W]``
equal rows of e gave different bits for W = 5, 17, 50, 123 or 513, never where W is a multiple of
16; and with b = 1 the product is a matrix-vector one whose bits change with the alignment of e.
With the operands exchanged (items as the left matrix) it happened in almost every shape. So here,
by construction:

* every product of a call has one shape, ``[rows, D] @ [D, width]``: ``width`` is a multiple of 64,
  a tail tile is padded, and ``rows`` is a multiple of 16, padded with zero queries;
* items are always the right operand;
* target scores are a product of that same shape over gathered item rows.

**Precision.** Operands are float32, converted tile by tile where the inputs are narrower; TF32,
bfloat16 products and autocast are off inside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from seqrec_kernels import calls
from seqrec_kernels.types import SeenItems, csr_places

_precision_lock = threading.Lock()
_precision_held: dict[str, tuple[int, str]] = {}  # device type -> threads inside, what was set


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Float32 products in full precision inside, whatever is set outside.

    The setting belongs to the process: the first thread in changes it, the last one out restores.
    """
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    with _precision_lock:
        inside, before = _precision_held.get(device_type, (0, backend.matmul.fp32_precision))
        _precision_held[device_type] = inside + 1, before
        if inside == 0 and before != "ieee":
            backend.matmul.fp32_precision = "ieee"
    try:
        with calls.no_autocast(device_type):
            yield
    finally:
        with _precision_lock:
            inside, before = _precision_held.pop(device_type)
            if inside > 1:
                _precision_held[device_type] = inside - 1, before
            elif before != "ieee":
                backend.matmul.fp32_precision = before


class ScoreTiles:
    """Scores of one block of queries at a time against item tiles, all through one workspace.

    Args:
        queries: ``[B, D]``. items: ``[V, D]``. item_bias: float32 ``[V]`` or None.
        first_item: tiles start here; column 0 of the first tile is this item.
        rows, width: most queries of a block and items of a tile.
    """

    def __init__(
        self,
        queries: Tensor,
        items: Tensor,
        item_bias: Tensor | None,
        first_item: int,
        rows: int,
        width: int,
    ) -> None:
        batch, depth = queries.shape
        self.queries = queries.detach()
        self.items = items.detach()[first_item:]
        self.item_bias = None if item_bias is None else item_bias.detach()[first_item:]
        self.count = self.items.shape[0]
        self.width = min(width, -(-self.count // 64) * 64)
        blocks = max(1, -(-batch // rows))
        self.rows = -(-max(1, -(-batch // blocks)) // 16) * 16
        self._block = self.new(self.rows, depth).zero_()
        self._copy = self.new(self.width, depth).zero_()
        self._scores = self.new(self.rows, self.width)
        dense = items.stride(1) == 1 and items.stride(0) >= depth
        self._in_place = items.dtype == torch.float32 and dense
        self.held = 0

    def new(self, *shape: int) -> Tensor:
        """An unwritten float32 tensor on the device."""
        return torch.empty(shape, dtype=torch.float32, device=self.queries.device)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of queries; each becomes the block that the other methods score."""
        for top in range(0, self.queries.shape[0], self.rows):
            end = min(top + self.rows, self.queries.shape[0])
            self.held = end - top
            self._block[: self.held].copy_(self.queries[top:end])
            self._block[self.held :].zero_()
            yield top, end

    def starts(self) -> range:
        """First columns of the tiles."""
        return range(0, self.count, self.width)

    def tile(self, start: int, out: Tensor | None = None) -> Tensor:
        """Scores ``[held, width]`` of items ``start .. start + width - 1``; NaN past the last.

        They stand in the workspace until the next product, or in ``out [rows, width]``.
        """
        out = self._scores if out is None else out
        stop = min(start + self.width, self.count)
        part = self.items[start:stop]
        if not self._in_place or part.shape[0] < self.width:
            self._copy[: stop - start].copy_(part)
            part = self._copy
        torch.mm(self._block, part.t(), out=out)
        scores = out[: self.held]
        if self.item_bias is not None:
            scores[:, : stop - start] += self.item_bias[start:stop]
        scores[:, stop - start :] = torch.nan
        return scores

    def at(self, columns: Tensor) -> Tensor:
        """Scores ``[held, T]`` of single items, in the bits ``tile`` gives them.

        Args:
            columns: int64 ``[held, T]``, columns in ``[0, count)``.
        """
        flat = columns.reshape(-1)
        found = flat.new_empty(flat.shape, dtype=torch.float32)
        owner = torch.arange(self.held, device=flat.device).repeat_interleave(columns.shape[1])
        for start in range(0, flat.shape[0], self.width):
            chosen = flat[start : start + self.width]
            self._copy[: chosen.shape[0]].copy_(self.items[chosen])
            torch.mm(self._block, self._copy.t(), out=self._scores)
            places = torch.arange(chosen.shape[0], device=flat.device)
            picked = self._scores[owner[start : start + self.width], places]
            found[start : start + self.width] = picked
        if self.item_bias is not None:
            found += self.item_bias[flat]
        return found.view(columns.shape)


class Entries:
    """Single (row, column) places of a score matrix, grouped by the tile they fall into.

    ``keys`` are sorted; ``order`` says where each stood (only meaningful without ``unique``, which
    drops repeats).
    """

    def __init__(self, rows: Tensor, columns: Tensor, tiles: ScoreTiles, unique: bool) -> None:
        per_tile = tiles.rows * tiles.width
        self.tiles = -(-tiles.count // tiles.width)
        group = (rows // tiles.rows) * self.tiles + columns // tiles.width
        flat = (rows % tiles.rows) * tiles.width + columns % tiles.width
        keys = group * per_tile + flat
        if unique:
            keys = torch.unique(keys)
        self.keys, self.order = keys.sort()
        self._per_tile = per_tile
        self._row_tiles = tiles
        blocks = -(-tiles.queries.shape[0] // tiles.rows)
        bounds = torch.arange(blocks * self.tiles + 1, device=keys.device) * per_tile
        # the one host read of the call: where each tile's entries begin
        self.bounds: list[int] = torch.searchsorted(self.keys, bounds).tolist()

    def of(self, top: int, start: int) -> tuple[Tensor, slice]:
        """Flat places in the tile that begins at (``top``, ``start``), and their slice of keys."""
        tiles = self._row_tiles
        group = (top // tiles.rows) * self.tiles + start // tiles.width
        part = slice(self.bounds[group], self.bounds[group + 1])
        return self.keys[part] - group * self._per_tile, part

    def rows(self) -> Tensor:
        """The row of every entry, in key order."""
        group, flat = self.keys // self._per_tile, self.keys % self._per_tile
        tiles = self._row_tiles
        return group // self.tiles * tiles.rows + flat // tiles.width

    def holds(self, other: Entries) -> Tensor:
        """Whether each of ``other``'s entries (in its key order) is one of these."""
        if self.keys.shape[0] == 0:
            return torch.zeros_like(other.keys, dtype=torch.bool)
        place = torch.searchsorted(self.keys, other.keys).clamp(max=self.keys.shape[0] - 1)
        return self.keys[place] == other.keys


def seen_entries(
    seen: SeenItems, batch: int, first_item: int, items: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (items from ``first_item`` on) of every seen place, and the rows gone wrong.

    A batch row is wrong, and has no entries, where the CSR sends it outside itself or names an item
    outside the table; eager CPU calls were stopped before. The number of entries is data: on CUDA
    this waits for the device.
    """
    offsets, ids, rows = seen
    users = offsets.shape[0] - 1
    if rows is None:
        rows = torch.arange(batch, device=ids.device)
    wrong = (rows < 0) | (rows >= users)
    if users == 0:
        none = ids.new_empty(0)
        return none, none, wrong
    rows = rows.clamp(0, users - 1)
    starts, ends = offsets[rows], offsets[rows + 1]
    wrong = wrong | (starts < 0) | (ends < starts) | (ends > ids.shape[0])
    lengths = torch.where(wrong, 0, ends - starts)
    owner, places = csr_places(starts, lengths)
    found = ids[places]
    outside = (found < 0) | (found >= items)
    wrong[owner[outside]] = True
    keep = (found >= first_item) & ~wrong[owner]
    return owner[keep], found[keep] - first_item, wrong


def dense_scores(
    queries: Tensor, items: Tensor, item_bias: Tensor | None, first_item: int
) -> Tensor:
    """The whole score matrix of the items from ``first_item`` on, for the references.

    float64 inputs are scored in float64. Otherwise a score is a float32 dot product, and the whole
    matrix is one product with both sides padded as the tiles are, for the same reason.
    """
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    (batch, depth), count = queries.shape, items.shape[0] - first_item
    left = torch.zeros(-(-batch // 16) * 16, depth, dtype=dtype, device=queries.device)
    right = torch.zeros(-(-count // 64) * 64, depth, dtype=dtype, device=queries.device)
    left[:batch] = queries.detach()
    right[:count] = items.detach()[first_item:]
    with exact_products(queries.device.type):
        scores = (left @ right.T)[:batch, :count]
    return scores if item_bias is None else scores + item_bias.detach()[first_item:]


# ---- order ---------------------------------------------------------------------------------------

_LOW = 0xFFFFFFFF


def order_keys(scores: Tensor, ids: Tensor | int) -> Tensor:
    """int64 keys in the order (score descending, id ascending); float32 scores without NaN."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: both zeros are one score
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.to(torch.int64) << 32) | (_LOW - ids)


def from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of keys."""
    monotone = (keys >> 32).to(torch.int32)
    bits = monotone ^ ((monotone >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _LOW - (keys & _LOW)
