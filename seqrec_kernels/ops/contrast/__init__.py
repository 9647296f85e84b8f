"""Contrastive losses with mixed hard negatives, and the ascent of noise negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec_kernels import calls, checks, triton_loader
from seqrec_kernels.backend import anywhere, choose, not_float64, register
from seqrec_kernels.ops.contrast import ascend, autograd, blocked, native, reference
from seqrec_kernels.ops.contrast.ascend import Ascent
from seqrec_kernels.ops.contrast.problem import Problem
from seqrec_kernels.ops.registration import schema

__all__ = ["ascend_noise", "focal_info_nce", "hard_negative_info_nce", "info_nce"]

FORMS = ("official", "paper")

register(
    "contrast",
    {
        "native": native.unsupported,
        "triton": triton_loader.unsupported,
        "blocked": blocked.unsupported,
        "reference": reference.unsupported,
    },
)
register(
    "ascend_noise", {"native": native.unsupported, "blocked": not_float64, "reference": anywhere}
)


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    noise: Tensor | None = None,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE: every anchor picks its positive out of shared negatives, without their logits.

    With ``s`` the dot product (raw: normalise the inputs for cosines) and logits ``s /
    temperature``, ``p_r`` the positive's and ``n`` those of kept negatives and noise,

        loss_r = -log( e^{p_r} / (e^{p_r} + sum e^n) )

    and 0 for a row with nothing kept. The ``[R, K]`` logits never exist at once.

    Args:
        anchors, positives: ``[R, D]`` float32, bfloat16 or float16 (float64 runs the dense
            reference), row by row pairs of one thing.
        negatives: ``[K, D]`` in the same dtype, common to all anchors. It may be the very tensor
            that ``anchors`` or ``positives`` is; gradients then add.
        noise: ``[E, D]`` in the same dtype, further negatives that are never left out.
        anchor_ids, negative_ids: int64 ``[R]`` and ``[K]``, both or neither. A pair with equal ids
            is left out (the anchor itself, its positive, others of its class); no value is special.
            Without them every pair is kept.
        temperature: Python float above 0. A value that changes every step recompiles a compiled
            graph every time; scale the anchors by a tensor instead.
        reduction: "mean" over all rows (0 without rows), "sum", or "none" (per row).

    Returns:
        The loss, 0-d or ``[R]``: float32 (float64 for float64 inputs).

    Gradients flow to all four matrices, each in its own dtype, sums in float32 rounded once, in a
    fixed order (same bits every time). Second derivatives exist under ``backend("reference")``
    only. Under autocast float32 operands are cast as ``torch.mm`` would.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding"
    (2018), equation 4; pairs left out as in ICSRec (Qin et al., WSDM 2024).
    """
    operands = _operands(anchors, positives, negatives, noise)
    return _loss(operands, (anchor_ids, negative_ids), numbers(temperature, reduction))


def focal_info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    noise: Tensor | None = None,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    focal_scale: float,
    margin: float = 0.0,
) -> Tensor:
    """InfoNCE whose similarities weigh themselves: near ones count more, far ones less.

    As ``info_nce``, with the positive's logit ``s * tanh(s / focal_scale) / temperature`` and those
    of negatives and noise ``s * (tanh(s / focal_scale) + margin) / temperature``. The temperature
    divides the finished logit only. The logit is even in ``s`` but for the margin: a positive of
    negative similarity is driven further away.

    Args:
        focal_scale: Python float above 0, the similarity at which the weight is tanh(1) = 0.76.
        margin: finite Python float added to the weight of negatives.

    The other arguments, dtypes, gradients and errors are those of ``info_nce``.

    Source: the contrastive part of FENRec (Huang et al., AAAI 2025) as coded, after Focal-InfoNCE
    (Hou and Li, EMNLP 2023).
    """
    if focal_scale is None:
        raise TypeError("focal_scale is None; without a scale the loss is info_nce")
    return _loss(
        _operands(anchors, positives, negatives, noise),
        (anchor_ids, negative_ids),
        numbers(temperature, reduction, focal_scale=focal_scale, margin=margin),
    )


def hard_negative_info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    noise: Tensor | None = None,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    focal_scale: float | None = None,
    margin: float = 0.0,
    mix: float | tuple[float, float] = 0.4,
    mix_weight: float = 0.1,
    seed: int | Tensor = 0,
    form: str = "official",
) -> Tensor:
    """InfoNCE with a harder negative for every pair: the negative mixed with the anchor.

    Adds to the denominator of ``focal_info_nce`` (of ``info_nce`` without ``focal_scale``), for
    every kept pair of anchor and negative, ``mix_weight * exp(logit)`` of

        h_rk = |n_k| unit(mix unit(a_r) + (1 - mix) unit(n_k))

    whose logit is the negative's, margin included, of ``u_rk = a_r . h_rk``. ``h`` is a constant:
    ``du_rk / da_r = h_rk``, and negatives get no gradient from it. No ``h_rk`` is ever formed:
    ``u`` and its gradient follow from ``a_r . n_k`` and two norms, so the block costs elementwise
    work. ``unit(0) = 0``, and ``h = 0`` where the bracket's squared norm is below 1e-6.

    Args:
        focal_scale, margin: as in ``focal_info_nce``; without a scale the margin must be 0.
        mix: the anchor's share, in [0, 1]; or ``(low, high)`` within it: every pair draws its own,
            ``low + (high - low) * u``, by Philox stream 1 with the counter (k, r).
        mix_weight: at least 0; 0 drops the block.
        seed: Python int or 0-d int64 tensor on the anchors' device, for drawn ratios. A tensor is
            read on the device, so a captured or compiled step may change it.
        form: "official" is the loss of the published code. "paper" reads the paper's equations:
            margin outside the weight, ``(s tanh(s/f) + margin) / temperature``, for negatives (and
            noise), none on mixed negatives, and the mixed negative in the tanh of its own weight is
            no constant, which sends gradient to anchors and negatives. They differ only with a
            focal scale.

    The other arguments, dtypes, gradients and errors are those of ``info_nce``.

    Source: the enduring hard negatives of FENRec (Huang et al., "Future Sight and Tough Fights",
    AAAI 2025), equations 9-15. The closed form: ``problem.py``.
    """
    return _loss(
        _operands(anchors, positives, negatives, noise),
        (anchor_ids, negative_ids),
        numbers(
            temperature,
            reduction,
            focal_scale=focal_scale,
            margin=margin,
            mix=mix,
            mix_weight=mix_weight,
            form=form,
        ),
        seed,
    )


def ascend_noise(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    noise: Tensor,
    *,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    temperature: float = 1.0,
    steps: int = 4,
    step_size: float = 1e-3,
) -> Tensor:
    """Noise negatives made harder: moved up the gradient of ``info_nce``, a fixed length a step.

    Each step adds ``step_size * g / |g|`` to every noise row, ``g`` the gradient of ``info_nce``
    with respect to it, in a form whose scale does not underflow. A row whose gradient is 0 or not
    finite stays.

    Args:
        anchors, positives, negatives, noise, anchor_ids, negative_ids, temperature: as in
            ``info_nce``; here ``noise`` is required.
        steps: at least 0.
        step_size: finite, the length of a step in the units of the noise.

    Returns:
        New noise, ``[E, D]`` in the noise's dtype (the steps are added up in float32). Nothing here
        is differentiable: the result requires no gradient, and autocast is ignored.

    Raises:
        TypeError, ValueError: shape, dtype, device or number, named with its value.

    Source: FENRec (Huang et al., AAAI 2025) as coded; the scale-free form: ``ascend.py``.
    """
    # narrower noise would round a step away
    with calls.no_autocast(checks.tensor("noise", noise).device.type):
        a, p, n, e = _operands(anchors, positives, negatives, noise)
    assert e is not None
    first, second = _ids((anchor_ids, negative_ids), a, n)
    call = Ascent(
        a.detach(),
        p.detach(),
        n.detach(),
        e.detach(),
        first,
        second,
        checks.temperature(temperature),
        checks.integer("steps", steps, 0),
        checks.within("step_size", step_size, -math.inf, math.inf),
    )
    run = _ascended if calls.direct(*call[:6]) else _ascend_operator
    return run(*call, choose("ascend_noise", a, n))


_ascents: dict[str, Callable[[Ascent], Tensor]] = {
    "native": native.ascend,
    "blocked": ascend.blocked,
    "reference": ascend.reference,
}


def _ascended(*arguments: Any) -> Tensor:
    """The fields of an ``Ascent``, then the implementation's name."""
    *fields, implementation = arguments
    with torch.no_grad(), calls.no_autocast(fields[0].device.type):
        return _ascents[implementation](Ascent(*fields))


_ascend_operator = torch.library.custom_op(
    "seqrec_kernels::ascend_noise",
    _ascended,
    mutates_args=(),
    schema=f"({schema(Ascent)}, str implementation) -> Tensor",
)


@_ascend_operator.register_fake
def _(*arguments: Any) -> Tensor:
    noise: Tensor = arguments[3]
    return noise.new_empty(noise.shape)


# ---- what the losses share -----------------------------------------------------------------------


def _mix(mix: object) -> tuple[float, float]:
    """The ends of the range that mix ratios are drawn from."""
    if not isinstance(mix, (tuple, list)):
        ratio = checks.within("mix", mix, 0.0, 1.0)
        return ratio, ratio
    if len(mix) != 2:
        raise ValueError(f"mix is {mix}; it must be a float or (low, high)")
    low, high = (checks.within(f"mix[{i}]", end, 0.0, 1.0) for i, end in enumerate(mix))
    if low > high:
        raise ValueError(f"mix is {mix}; low must not be above high")
    return low, high


Operands = tuple[Tensor, Tensor, Tensor, "Tensor | None"]


def _operands(anchors: object, positives: object, negatives: object, noise: object) -> Operands:
    """The four matrices, checked, and cast by autocast."""
    named = {"anchors": anchors, "positives": positives, "negatives": negatives}
    if noise is not None:
        named["noise"] = noise
    a, p, n, *rest = checks.matrices(**calls.autocast(**named))
    if p.shape != a.shape:
        raise ValueError(
            f"positives must have the shape of anchors, {tuple(a.shape)}, not {tuple(p.shape)}"
        )
    return a, p, n, rest[0] if rest else None


def _ids(
    ids: tuple[object, object], anchors: Tensor, negatives: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both ids or neither, one for each row."""
    if ids[0] is None and ids[1] is None:
        return None, None
    names = ("anchor_ids", "negative_ids")
    if ids[0] is None or ids[1] is None:
        given = names[ids[0] is None]
        raise ValueError(f"{given} without {names[ids[0] is not None]}; give both or neither")
    found = [checks.int64(name, i, anchors, "anchors") for name, i in zip(names, ids, strict=True)]
    for name, part, rows in zip(names, found, (anchors, negatives), strict=True):
        if part.shape != rows.shape[:1]:
            raise ValueError(f"{name} must be [{rows.shape[0]}], not {tuple(part.shape)}")
    return found[0], found[1]


class Numbers(NamedTuple):
    """The last fields of a problem."""

    temperature: float
    focal_scale: float | None
    margin: float
    mix_low: float
    mix_high: float
    mix_weight: float
    form: str
    reduction: str


def numbers(
    temperature: object,
    reduction: object,
    *,
    focal_scale: object = None,
    margin: object = 0.0,
    mix: object = 0.0,
    mix_weight: object = 0.0,
    form: object = "official",
) -> Numbers:
    """Numbers and words of a loss, checked; left out, they are those of ``info_nce``."""
    checked = Numbers(
        checks.temperature(temperature),
        None if focal_scale is None else checks.positive("focal_scale", focal_scale),
        checks.within("margin", margin, -math.inf, math.inf),
        *_mix(mix),
        checks.within("mix_weight", mix_weight, 0.0, math.inf),
        checks.one_of("form", form, FORMS),
        checks.one_of("reduction", reduction, checks.REDUCTIONS),
    )
    if checked.focal_scale is None and checked.margin != 0:
        raise ValueError(f"margin is {margin} but there is no focal_scale; it must be 0 then")
    return checked


def _loss(
    operands: Operands,
    ids: tuple[object, object],
    numbers: Numbers,
    seed: object = 0,
) -> Tensor:
    anchors, positives, negatives, noise = operands
    first, second = _ids(ids, anchors, negatives)
    seed = checks.seed(seed, anchors, "anchors")
    problem = Problem(anchors, positives, negatives, noise, first, second, seed, *numbers)
    implementation = choose("contrast", anchors, negatives)
    if implementation == "reference":
        with calls.no_autocast(anchors.device.type):  # its casts are done, above
            return reference.contrast(problem)
    return autograd.contrast(problem, implementation)
