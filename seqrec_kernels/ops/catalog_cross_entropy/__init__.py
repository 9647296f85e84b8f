"""Full-catalogue softmax cross-entropy with sparse soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, id_checks, triton_loader
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.catalog_cross_entropy import autograd, blocked, native, reference
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem

__all__ = ["catalog_cross_entropy"]

register(
    "catalog_cross_entropy",
    {
        "native": native.unsupported,
        "triton": triton_loader.unsupported,
        "blocked": blocked.unsupported,
        "reference": reference.unsupported,
    },
)


def catalog_cross_entropy(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    item_bias: Tensor | None = None,
    first_item: int = 0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy of every query against the whole catalogue, without its logits.

    With logits ``x_mv = queries_m . items_v / temperature + item_bias_v`` over the items from
    ``first_item`` on,

        loss_m = (sum_t w_mt) * LSE_v(x_mv) - sum_t w_mt * x_m,target_mt

    which for one target a row is ``F.cross_entropy(queries @ items.T, targets)``, and for several
    the cross-entropy with soft labels that are 0 everywhere else. Repeated targets of a row add up.
    The ``[M, V]`` logits never exist at once: memory is a cache-sized workspace.

    Args:
        queries: ``[M, D]`` float32, bfloat16 or float16 (float64 runs the dense reference).
        items: ``[V, D]`` in the same dtype, the item table.
        targets: int64 ``[M]`` or ``[M, T]``, rows of ``items``; -1 is an empty slot.
        weights: shape of ``targets``, in the queries' dtype; ignored in empty slots, need not sum
            to 1, not differentiable. Default: 1 / (filled slots of the row).
        item_bias: float32 ``[V]`` (float64 beside float64), added after the temperature, e.g. a
            log-Q correction. -inf takes an item out of the softmax; a row whose weighted target is
            taken out has the loss +inf.
        first_item: rows of ``items`` below it are outside the softmax (padding); in ``[0, V)``.
        temperature: Python float above 0. A value that changes every step recompiles a compiled
            graph every time; scale the queries by a tensor instead.
        reduction: "mean" over the rows that count, "sum", or "none" (per row). A row counts when it
            has a filled slot, whatever its weights; the loss of any other row is 0. With no row
            that counts the mean is 0, with zero gradients.

    Returns:
        The loss, 0-d or ``[M]``: float32 (float64 for float64 inputs).

    Gradients flow to ``queries``, ``items`` and ``item_bias``, each in its own dtype, sums in
    float32 rounded once, in a fixed order (same bits every time). Second derivatives exist under
    ``backend("reference")`` only. Under autocast float32 operands are cast as ``torch.mm`` would.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: a target that is neither -1 nor in ``[first_item, V)``, on the CPU in eager
            mode. On CUDA and inside ``torch.compile`` the loss of its row is NaN instead (and such
            a slot adds nothing to the gradients), unless ``SEQREC_CHECK_IDS=1``.

    The idea of never forming the logits: Wijmans et al., "Cut Your Losses in Large-Vocabulary
    Language Models" (ICLR 2025). How it is done here: ``blocked.py``.
    """
    queries, items = checks.matrices(**calls.autocast(queries=queries, items=items))
    targets = checks.targets(targets, queries)
    weights = _weights(weights, targets, queries)
    item_bias = checks.item_bias(item_bias, queries, items)
    first_item = checks.integer("first_item", first_item, 0, items.shape[0])
    temperature = checks.temperature(temperature)
    reduction = checks.one_of("reduction", reduction, checks.REDUCTIONS)
    targets = id_checks.id_values("targets", targets, first_item, items.shape[0])

    implementation = choose("catalog_cross_entropy", queries, items)
    problem = Problem(
        queries, items, targets, weights, item_bias, first_item, temperature, reduction
    )
    if implementation == "reference":
        with calls.no_autocast(queries.device.type):  # its casts are done, above
            return reference.catalog_cross_entropy(problem)
    return autograd.catalog_cross_entropy(problem, implementation)


def _weights(value: object, targets: Tensor, queries: Tensor) -> Tensor | None:
    if value is None:
        return None
    weights = checks.tensor("weights", value)
    # autocast changes the queries' dtype behind the caller's back; float32 weights stay welcome
    kind = queries.device.type
    cast = kind != "meta" and torch.is_autocast_enabled(kind)
    if weights.dtype != queries.dtype and not (cast and weights.dtype == torch.float32):
        raise TypeError(f"weights are {weights.dtype} but queries are {queries.dtype}")
    if weights.shape != targets.shape:
        raise ValueError(
            f"weights must have the shape of targets, {tuple(targets.shape)}, "
            f"not {tuple(weights.shape)}"
        )
    if weights.requires_grad:
        raise ValueError("weights require a gradient, which this loss does not have; detach them")
    checks.same_device("weights", weights, queries)
    return weights
