"""Exact rank of targets within the full catalogue."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, id_checks
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.catalog_rank import blocked, native, reference
from seqrec_kernels.triton_loader import TritonKernels
from seqrec_kernels.types import Rank, SeenItems

__all__ = ["catalog_rank"]

_implementations: dict[str, ModuleType] = {
    "native": native,
    "triton": TritonKernels("catalog_rank"),
    "blocked": blocked,
    "reference": reference,
}
register("catalog_rank", {name: module.unsupported for name, module in _implementations.items()})


def catalog_rank(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    item_bias: Tensor | None = None,
    first_item: int = 0,
    seen: SeenItems | None = None,
    seen_score: float | None = None,
) -> Rank:
    """Counts the candidates that score above, and level with, each target.

    A score is ``queries_b . items_v + item_bias_v``, one float32 dot product (never TF32, and
    autocast is ignored). The candidates of a target are all items from ``first_item`` on but the
    target itself, without the row's seen items (``seen_score`` None) or with their score replaced
    by ``seen_score``. Other targets of the row are ordinary candidates. The target is always
    ranked: by its own score where seen items are left out, by ``seen_score`` where it is among the
    seen. Scores are compared as floats, -0.0 equals 0.0; NaN ranks below every number, and a target
    whose own score is NaN is last: ``greater`` is the number of its candidates, ``equal`` 0.

    From the counts follows every rank metric, exactly and under any tie rule (``rank_metrics``).
    Memory is two cache-sized tiles; the score matrix never exists.

    Args:
        queries: ``[B, D]`` float32, bfloat16 or float16 (float64 runs the dense reference).
        items: ``[V, D]`` in the same dtype.
        targets: int64 ``[B]`` or ``[B, T]``, rows of ``items``; -1 has the rank (-1, -1).
        item_bias: float32 ``[V]`` (float64 beside float64); -inf puts an item behind all others.
        first_item: rows of ``items`` below it are no candidates, 0 <= first_item < V.
        seen: the items each row has met.
        seen_score: a Python float, the score of seen items; needs ``seen``.

    Returns:
        ``Rank(greater, equal)``, int64 counts in the shape of ``targets``. Not differentiable.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: an id out of range, on the CPU in eager mode. On CUDA and inside
            ``torch.compile`` its row (of seen items) or itself (a target) has the rank (-1, -1)
            instead, unless ``SEQREC_CHECK_IDS=1``.
    """
    queries, items = checks.matrices(queries=queries, items=items)
    targets = checks.targets(targets, queries)
    item_bias = checks.item_bias(item_bias, queries, items)
    first_item = checks.integer("first_item", first_item, 0, items.shape[0])
    seen = checks.seen_items(seen, queries)
    if seen_score is not None:
        seen_score = checks.number("seen_score", seen_score)
        if seen is None:
            raise ValueError(f"seen_score is {seen_score} but seen is None; give the seen items")
    targets = id_checks.id_values("targets", targets, first_item, items.shape[0])
    seen = id_checks.seen_values(seen, items.shape[0])

    implementation = choose("catalog_rank", queries, items)
    offsets, ids, rows = (None, None, None) if seen is None else seen
    plain = calls.direct(queries, items, targets, item_bias, offsets, ids, rows)
    run = _run if plain else _operator
    greater, equal = run(
        queries,
        items,
        targets,
        item_bias,
        first_item,
        offsets,
        ids,
        rows,
        seen_score,
        implementation,
    )
    return Rank(greater, equal)


def _run(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    item_bias: Tensor | None,
    first_item: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    rows: Tensor | None,
    seen_score: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    seen = None if offsets is None or ids is None else SeenItems(offsets, ids, rows)
    with torch.no_grad():
        return _implementations[implementation].forward(
            queries, items, targets, item_bias, first_item, seen, seen_score
        )


_operator = torch.library.custom_op("seqrec_kernels::catalog_rank", _run, mutates_args=())


@_operator.register_fake
def _(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    item_bias: Tensor | None,
    first_item: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    rows: Tensor | None,
    seen_score: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    return targets.new_empty(targets.shape), targets.new_empty(targets.shape)
