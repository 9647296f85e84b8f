"""What the contrastive losses ask for, as every implementation takes it, and what it means.

**Logits.** With similarities ``s = a_r . x`` (x the row's positive, a negative or a noise row) and

    phi(s; m) = s (tanh(s / focal_scale) + m) / temperature        s / temperature without a scale

the positive has the logit ``p_r = phi(a_r . p_r; 0)``, and every kept negative and noise row
``phi(s; margin)``. A pair with equal ids is left out, with its mixed negative.

**Mixed negatives** add ``mix_weight * exp(phi(u_rk; margin))`` for every kept pair. With ``a``,
``b`` the norms of anchor and negative, ``c`` the cosine between them, ``alpha = mix`` (0 for an
anchor of norm 0) and ``beta = 1 - mix`` (0 for a negative of norm 0),

    D^2  = alpha^2 + beta^2 + 2 alpha beta c
    h_rk = (alpha b / (a D)) a_r + (beta / D) n_k           0 where D^2 < 1e-6
    u_rk = a_r . h_rk = (alpha a b + beta s) / D            no vector is needed for its value

and ``h`` is a constant, so ``du_rk / da_r = h_rk`` and negatives get nothing from it.

**The form "paper"** is the equations of FENRec's paper instead of its code. With a focal scale the
margin is added to the finished weight, ``(s tanh(s/f) + margin)/t``, for negatives and noise; the
mixed logit is ``u tanh(u/f)/t`` without margin, and only its outer ``u`` is stopped: the one inside
the tanh has the derivatives of ``w = a b F(c)``, ``F = (alpha + beta c)/D``, with
``F' = beta^2 (beta + alpha c)/D^3``,

    dw/da_r = (F - F' c) (b/a) a_r + F' n_k         dw/dn_k = (F - F' c) (a/b) n_k + F' a_r

Without a focal scale both forms are the same.

**Loss.** ``loss_r = log(e^p_r + sum of the others) - p_r``; 0 with nothing kept. All rows count.

Source: Huang et al., "Future Sight and Tough Fights: Revolutionizing Sequential Recommendation with
FENRec" (AAAI 2025), equations 9-15, and the published code; the closed form and the gradients are
derived here.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LEAST_SQUARE", "Problem"]

LEAST_SQUARE = 1e-6  # D^2 below which a mixed negative has no direction


class Problem(NamedTuple):
    """One call of the family, checked; all three public losses are this one problem."""

    anchors: Tensor  # [R, D]
    positives: Tensor  # [R, D]
    negatives: Tensor  # [K, D]
    noise: Tensor | None  # [E, D]
    anchor_ids: Tensor | None  # int64 [R]; both or neither
    negative_ids: Tensor | None  # int64 [K]
    seed: Tensor  # int64, 0-d, on the operator's device; read on the device
    temperature: float
    focal_scale: float | None  # None: plain logits
    margin: float  # 0 without focal_scale
    mix_low: float  # == mix_high: constant, no Philox
    mix_high: float  # uniform draw: low + (high - low) * u, u by Philox stream 1, c0 = k, c1 = r
    mix_weight: float  # 0: no mixed block (info_nce and focal_info_nce are such problems)
    form: str  # "official" | "paper"
    reduction: str  # "mean" | "sum" | "none"
