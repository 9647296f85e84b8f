"""One hard negative a row, drawn among the best of its candidates."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, id_checks
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.rerank_negatives import blocked, native, reference
from seqrec_kernels.ops.rerank_negatives.problem import Problem
from seqrec_kernels.types import SeenItems

__all__ = ["rerank_negatives"]

_implementations: dict[str, ModuleType] = {
    "native": native,
    "blocked": blocked,
    "reference": reference,
}
register(
    "rerank_negatives", {name: module.unsupported for name, module in _implementations.items()}
)


def rerank_negatives(
    queries: Tensor,
    items: Tensor,
    candidates: Tensor | None,
    top_m: int | Tensor,
    *,
    shared: Tensor | None = None,
    forbidden: SeenItems | None = None,
    repeated: str = "drop",
    first_item: int = 0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Draws one of the ``top_m`` candidates that score highest for each row.

    A score is ``queries_b . items_v``, one float32 dot product (never TF32, and autocast is
    ignored). A row keeps its ``top_m`` best allowed candidates (ties by lowest id; all of them
    where there are fewer) and one is drawn, each with equal probability. The rows of items are
    never gathered as ``[B, C, D]``, and nothing is sorted where the compiled implementation runs.

    Args:
        queries: ``[B, D]`` float32, bfloat16 or float16 (float64 runs the dense reference).
        items: ``[V, D]`` in the same dtype.
        candidates: int64 ``[B, C]``, each row's own, rows of ``items``; -1 is an empty slot. Or
            None.
        top_m: how many are kept, a Python int of at least 1 or a 0-d int64 tensor on the device,
            which is read there (one below 1 keeps none). A curriculum inside a CUDA graph passes
            the tensor.
        shared: int64 ``[S]``, further candidates of every row, -1 as above; or None. At least one
            of the two is given.
        forbidden: items that each row may not draw.
        repeated: "drop": an id counts once in a row, however many slots hold it. "keep": once a
            slot, so that it is drawn as much more often, as R2NS is published.
        first_item: rows of ``items`` below it are no candidates, 0 <= first_item < V.
        seed: Python int (its low 64 bits count) or a 0-d int64 tensor on the device. Row b's draw
            is Philox stream 2 at counter b: among m kept it takes rank ``(word * m) >> 32``.

    Returns:
        int64 ``[B]``; -1 for a row without an allowed candidate. A candidate whose score is NaN is
        not allowed (one of -inf is). Not differentiable.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: a candidate that is neither -1 nor in ``[first_item, V)``, or a forbidden id
            outside the table, on the CPU in eager mode. On CUDA and inside ``torch.compile`` the
            rows it concerns (all of them, for a shared one) come back as -1 instead, unless
            ``SEQREC_CHECK_IDS=1``.

    Source: R2NS (WWW 2026, doi 10.1145/3774904.3792360), equations 9 to 17; dynamic negative
    sampling goes back to Zhang et al., "Optimizing Top-N Collaborative Filtering via Dynamic
    Negative Item Sampling" (SIGIR 2013).
    """
    queries, items = checks.matrices(queries=queries, items=items)
    first_item = checks.integer("first_item", first_item, 0, items.shape[0])
    rows, count = queries.shape[0], items.shape[0]
    if candidates is None and shared is None:
        raise ValueError("candidates and shared are both None; give at least one of them")
    if candidates is not None:
        candidates = checks.int64("candidates", candidates, queries)
        if candidates.dim() != 2 or candidates.shape[0] != rows:
            raise ValueError(f"candidates must be [{rows}, C], not {tuple(candidates.shape)}")
        candidates = id_checks.id_values("candidates", candidates, first_item, count)
    if shared is not None:
        shared = checks.int64("shared", shared, queries)
        if shared.dim() != 1:
            raise ValueError(f"shared must be [S], not {tuple(shared.shape)}")
        shared = id_checks.id_values("shared", shared, first_item, count)
    met = checks.seen_items(forbidden, queries, "forbidden")
    met = id_checks.seen_values(met, count, "forbidden")
    drop = checks.one_of("repeated", repeated, ("drop", "keep")) == "drop"
    top_m, seed = checks.count("top_m", top_m, queries), checks.seed(seed, queries)

    implementation = choose("rerank_negatives", queries, items)
    offsets, ids, users = (None, None, None) if met is None else met
    tensors = (queries, items, candidates, shared, offsets, ids, users, top_m, seed)
    run = _run if calls.direct(*tensors) else _operator
    found: Tensor = run(*tensors, drop, first_item, implementation)
    return found


def _run(
    queries: Tensor,
    items: Tensor,
    candidates: Tensor | None,
    shared: Tensor | None,
    forbidden_offsets: Tensor | None,
    forbidden_ids: Tensor | None,
    forbidden_rows: Tensor | None,
    top_m: Tensor,
    seed: Tensor,
    drop: bool,
    first_item: int,
    implementation: str,
) -> Tensor:
    forbidden = None
    if forbidden_offsets is not None and forbidden_ids is not None:
        forbidden = SeenItems(forbidden_offsets, forbidden_ids, forbidden_rows)
    with torch.no_grad():
        found: Tensor = _implementations[implementation].forward(
            Problem(queries, items, candidates, shared, forbidden, top_m, seed, drop, first_item)
        )
        return found


_operator = torch.library.custom_op("seqrec_kernels::rerank_negatives", _run, mutates_args=())


@_operator.register_fake
def _(
    queries: Tensor,
    items: Tensor,
    candidates: Tensor | None,
    shared: Tensor | None,
    forbidden_offsets: Tensor | None,
    forbidden_ids: Tensor | None,
    forbidden_rows: Tensor | None,
    top_m: Tensor,
    seed: Tensor,
    drop: bool,
    first_item: int,
    implementation: str,
) -> Tensor:
    return queries.new_empty((queries.shape[0],), dtype=torch.int64)
