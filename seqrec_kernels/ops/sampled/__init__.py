"""Losses against sampled negatives: binary cross-entropy, BPR and sampled softmax."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from seqrec_kernels import calls, checks, id_checks
from seqrec_kernels.backend import choose, register
from seqrec_kernels.ops.sampled import autograd, blocked, native, reference
from seqrec_kernels.ops.sampled.problem import Problem

__all__ = ["bce_loss", "bpr_loss", "sampled_softmax_loss"]

register(
    "sampled",
    {
        "native": native.unsupported,
        "blocked": blocked.unsupported,
        "reference": reference.unsupported,
    },
)


def bce_loss(
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    log_q: None = None,
    drop_hits: bool = False,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Binary cross-entropy of a positive item against sampled negatives; gBCE with ``beta``.

    With ``a`` and ``b_n`` the dot products of the row's query with its positive and its negatives,
    over ``temperature``,

        loss = beta * softplus(-a) + sum_n softplus(b_n)

    Args:
        log_q: has no meaning here and must be None.
        beta: finite Python float of at least 0. 1 is the plain loss; gSASRec takes
            ``alpha * (t * (1 - 1/alpha) + 1/alpha)`` with ``alpha`` = negatives / (items - 1) and
            ``t`` in [0, 1], which lowers the confidence in positives that few negatives raise.

    The other arguments, dtypes, gradients and errors are those of ``sampled_softmax_loss``.

    Source: Petrov and Macdonald, "gSASRec" (RecSys 2023), equation 8, without the division by the
    number of negatives; for one negative and beta 1 the loss of SASRec (Kang and McAuley, ICDM
    2018).
    """
    _no_log_q("bce_loss", log_q)
    call = numbers(temperature, drop_hits, reduction, loss="bce", beta=beta)
    return _loss(queries, items, positives, negatives, None, call)


def bpr_loss(
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    log_q: None = None,
    drop_hits: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Bayesian personalised ranking: the positive's logit above each sampled negative's.

    With ``a`` and ``b_n`` the dot products of the row's query with its positive and its negatives,
    over ``temperature``, and the mean over the negatives that take part,

        loss = mean_n softplus(b_n - a)

    Args:
        log_q: has no meaning here and must be None.

    The other arguments, dtypes, gradients and errors are those of ``sampled_softmax_loss``.

    Source: Rendle et al., "BPR" (UAI 2009), section 4, without the regularisation.
    """
    _no_log_q("bpr_loss", log_q)
    call = numbers(temperature, drop_hits, reduction, loss="bpr")
    return _loss(queries, items, positives, negatives, None, call)


def sampled_softmax_loss(
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    log_q: Tensor | None = None,
    drop_hits: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy of a positive item among sampled negatives.

    With logits ``a = q . e_positive / temperature - log_q_positive``, ``b_n`` alike,

        loss = log(e^a + sum_n e^{b_n}) - a

    The ``[M, N, D]`` rows of the negatives are never gathered.

    Args:
        queries: ``[M, D]`` float32, bfloat16 or float16 (float64 runs the dense reference).
        items: ``[V, D]`` in the same dtype, the item table, ``V`` at least 1.
        positives: int64 ``[M]``, rows of ``items``; -1 is none.
        negatives: int64 ``[M, N]``, or ``[N]`` to share them among all rows (matrix products
            then); -1 is an empty slot. Repeated ids count as often as they occur.
        temperature: Python float above 0. A value that changes every step recompiles a compiled
            graph every time; scale the queries by a tensor instead.
        log_q: float32 ``[V]`` (float64 beside float64), the log of the expected number of times
            an item is drawn, or its probability; finite for every item in use. Without it the
            sampled softmax is that of negatives drawn uniformly.
        drop_hits: leave out negatives that are the row's positive.
        reduction: "mean" over the rows that count, "sum", or "none" (per row). A row counts when
            it has a positive and a negative that takes part; the loss of any other row is 0. With
            no row that counts the mean is 0, with zero gradients.

    Returns:
        The loss, 0-d or ``[M]``: float32 (float64 for float64 inputs).

    Gradients flow to ``queries``, ``items`` and ``log_q``, each in its own dtype, sums in float32
    rounded once, in a fixed order (same bits every time, whatever the number of threads). That of
    the items is dense. Second derivatives exist under ``backend("reference")`` only. Under autocast
    float32 operands are cast as ``torch.mm`` would.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.
        IndexError: an id that is neither -1 nor in ``[0, V)``, on the CPU in eager mode. On CUDA
            and inside ``torch.compile`` the loss of the rows it stands in is NaN instead (and such
            a slot adds nothing to the gradients), unless ``SEQREC_CHECK_IDS=1``.

    Source: Bengio and Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural
    Probabilistic Language Model" (2008). Slopes and stable forms: ``problem.py``.
    """
    call = numbers(temperature, drop_hits, reduction)
    return _loss(queries, items, positives, negatives, log_q, call)


class Numbers(NamedTuple):
    """The last fields of a problem."""

    loss: str
    temperature: float
    beta: float
    drop_hits: bool
    reduction: str


def numbers(
    temperature: object,
    drop_hits: object,
    reduction: object,
    *,
    loss: str = "softmax",
    beta: object = 1.0,
) -> Numbers:
    """Numbers and words of a loss, checked."""
    if not isinstance(drop_hits, bool):
        raise TypeError(f"drop_hits must be a bool, not {type(drop_hits).__name__}")
    return Numbers(
        loss,
        checks.temperature(temperature),
        checks.within("beta", beta, 0.0, math.inf),
        drop_hits,
        checks.one_of("reduction", reduction, checks.REDUCTIONS),
    )


def _no_log_q(name: str, log_q: object) -> None:
    if log_q is not None:
        raise ValueError(f"log_q corrects sampled_softmax_loss only; {name} must get None")


def _loss(
    queries: Any, items: Any, positives: Any, negatives: Any, log_q: Any, call: Numbers
) -> Tensor:
    queries, items = checks.matrices(**calls.autocast(queries=queries, items=items))
    if items.shape[0] == 0:
        raise ValueError("items has no rows; it must have at least one")
    rows = queries.shape[0]
    positives = checks.int64("positives", positives, queries)
    if positives.shape != (rows,):
        raise ValueError(f"positives must be [{rows}], not {tuple(positives.shape)}")
    negatives = checks.int64("negatives", negatives, queries)
    if negatives.dim() != 1 and (negatives.dim() != 2 or negatives.shape[0] != rows):
        raise ValueError(f"negatives must be [{rows}, N] or [N], not {tuple(negatives.shape)}")
    log_q = checks.item_vector("log_q", log_q, queries, items)
    positives = id_checks.id_values("positives", positives, 0, items.shape[0])
    negatives = id_checks.id_values("negatives", negatives, 0, items.shape[0])

    problem = Problem(queries, items, positives, negatives, log_q, *call)
    implementation = choose("sampled", queries, items)
    if implementation == "reference":
        with calls.no_autocast(queries.device.type):  # its casts are done, above
            return reference.sampled(problem)
    return autograd.sampled(problem, implementation)
