"""The best k items of the full catalogue."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, id_checks
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.catalog_topk import blocked, native, reference
from seqrec_kernels.triton_loader import TritonKernels
from seqrec_kernels.types import SeenItems, TopK

__all__ = ["catalog_topk"]

# on CUDA triton's kernels come first: they write no score, and neither path has been timed there
_implementations: dict[str, ModuleType] = {
    "triton": TritonKernels("catalog_topk"),
    "native": native,
    "blocked": blocked,
    "reference": reference,
}
register("catalog_topk", {name: module.unsupported for name, module in _implementations.items()})


def catalog_topk(
    queries: Tensor,
    items: Tensor,
    k: int,
    *,
    item_bias: Tensor | None = None,
    first_item: int = 0,
    seen: SeenItems | None = None,
) -> TopK:
    """The k items that score highest for every query, without the score matrix.

    A score is ``queries_b . items_v + item_bias_v``, one float32 dot product (never TF32, and
    autocast is ignored). Items below ``first_item`` and seen items are no candidates; an item whose
    score is NaN or -inf (a bias of -inf takes it out) is never returned.

    Args:
        queries: ``[B, D]`` float32, bfloat16 or float16 (float64 runs the dense reference).
        items: ``[V, D]`` in the same dtype.
        k: how many, at least 1; also above V.
        item_bias: float32 ``[V]`` (float64 beside float64).
        first_item: rows of ``items`` below it are no candidates, 0 <= first_item < V.
        seen: the items each row has met.

    Returns:
        ``TopK(scores, ids)``, ``[B, k]`` float32 (float64 for float64 inputs) and int64,
        descending, ties by lowest id, padded with -inf and -1. Not differentiable.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: a seen id out of range, on the CPU in eager mode. On CUDA and inside
            ``torch.compile`` its row comes back as -inf and -1 instead, unless
            ``SEQREC_CHECK_IDS=1``.

    Finding the groups that hold the best items first follows Gaihre et al., "Dr. Top-k" (SC 2021).
    """
    queries, items = checks.matrices(queries=queries, items=items)
    k = checks.integer("k", k, 1)
    item_bias = checks.item_bias(item_bias, queries, items)
    first_item = checks.integer("first_item", first_item, 0, items.shape[0])
    seen = id_checks.seen_values(checks.seen_items(seen, queries), items.shape[0])

    implementation = choose("catalog_topk", queries, items)
    offsets, ids, rows = (None, None, None) if seen is None else seen
    run = _run if calls.direct(queries, items, item_bias, offsets, ids, rows) else _operator
    scores, found = run(
        queries, items, k, item_bias, first_item, offsets, ids, rows, implementation
    )
    return TopK(scores, found)


def _run(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    rows: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    seen = None if offsets is None or ids is None else SeenItems(offsets, ids, rows)
    with torch.no_grad():
        return _implementations[implementation].forward(
            queries, items, k, item_bias, first_item, seen
        )


_operator = torch.library.custom_op("seqrec_kernels::catalog_topk", _run, mutates_args=())


@_operator.register_fake
def _(
    queries: Tensor,
    items: Tensor,
    k: int,
    item_bias: Tensor | None,
    first_item: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    rows: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    return queries.new_empty(shape, dtype=dtype), queries.new_empty(shape, dtype=torch.int64)
