"""The sampled losses against loops in float64, at their edges, and with wrong arguments."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sampled_calls import (
    LOSSES,
    REDUCTIONS,
    Call,
    agrees,
    call,
    exact,
    extreme_logits_stay_finite,
    gradients,
    upstream_of,
)
from torch import Tensor

import seqrec_kernels
from seqrec_kernels import backend, bce_loss, bpr_loss, catalog_cross_entropy, sampled_softmax_loss

EVERY = pytest.mark.parametrize("loss", LOSSES)
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
HITS = pytest.mark.parametrize("drop_hits", [False, True], ids=["hits", "no hits"])

# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@HITS
@SHARED
@EVERY
def test_agrees_with_float64_in_tiny_tiles(
    tiny_tiles: None, loss: str, shared: bool, drop_hits: bool, reduction: str
) -> None:
    made = call(8, 7, 5, 6, shared=shared, drop_hits=drop_hits, reduction=reduction, size=2.0)
    agrees(LOSSES[loss], made)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 1, 9, 8), (3, 17, 2, 50), (65, 5, 33, 123), (9, 64, 40, 64)],
    ids=str,
)
@SHARED
@EVERY
def test_agrees_with_float64_in_real_tiles(
    loss: str, shared: bool, shape: tuple[int, int, int, int]
) -> None:
    agrees(LOSSES[loss], call(*shape, shared=shared, drop_hits=True, size=3.0))


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (0, 0, 3, 5), (3, 0, 2, 5), (3, 4, 2, 0)], ids=str)
@SHARED
@EVERY
def test_empty_sides(
    name: str, reduction: str, shape: tuple[int, int, int, int], shared: bool, loss: str
) -> None:
    made = call(*shape, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    with backend(name):
        ours = gradients(LOSSES[loss], made, upstream)
    for our, true in zip(ours, exact(LOSSES[loss], made, upstream), strict=True):
        assert our.dtype == torch.float32
        torch.testing.assert_close(our.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@SHARED
@EVERY
def test_narrow_inputs_are_summed_in_float32(
    tiny_tiles: None, loss: str, shared: bool, reduction: str, dtype: torch.dtype
) -> None:
    made = call(9, 11, 8, 24, shared=shared, reduction=reduction)
    made = made._replace(queries=made.queries.to(dtype), items=made.items.to(dtype))
    upstream = upstream_of(made)
    ours = gradients(LOSSES[loss], made, upstream)
    right = exact(LOSSES[loss], made, upstream)
    assert [t.dtype for t in ours[:3]] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(ours[0].double(), right[0], rtol=3e-6, atol=3e-6)
    # rounded once: at most half a unit in the last place from the exact gradient, plus float32's
    half = torch.finfo(dtype).eps / 2
    for our, true in zip(ours[1:3], right[1:3], strict=True):
        assert ((our.double() - true).abs() <= half * 1.001 * true.abs() + 3e-6).all()


# ---- what the losses are -------------------------------------------------------------------------


def test_bce_is_torchs_with_logits() -> None:
    made = call(20, 6, 30, 8)
    q, e, p, n = made[:4]
    p, n = p.clamp(min=0), n.clamp(min=0)
    logits = torch.cat([(q * e[p])[:, None].sum(2), torch.einsum("md,mnd->mn", q, e[n])], 1)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    theirs = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(bce_loss(q, e, p, n, reduction="none"), theirs)


def test_the_calibrated_positive_is_its_probability_to_the_power_of_beta() -> None:
    q, e = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 0.1], [0.2, -0.5]])
    a, b = (q @ e.T)[0].double()
    loss = bce_loss(q, e, torch.tensor([0]), torch.tensor([[1]]), beta=0.25)
    expected = -(torch.sigmoid(a) ** 0.25).log() - (1 - torch.sigmoid(b)).log()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_softmax_among_the_whole_catalogue_is_catalog_cross_entropy() -> None:
    q, e, targets = torch.randn(12, 8), torch.randn(9, 8), torch.randint(9, (12,))
    loss = sampled_softmax_loss(q, e, targets, torch.arange(9), drop_hits=True, temperature=0.5)
    torch.testing.assert_close(loss, catalog_cross_entropy(q, e, targets, temperature=0.5))


def test_the_correction_makes_sampled_sums_unbiased() -> None:
    """exp(-log_q) of the expected counts: the mean of the negatives' part is the catalogue's."""
    q, e = torch.randn(1, 4), torch.randn(50, 4)
    draws, count = 20000, 16
    chances = torch.rand(50).div_(25).add_(0.001)
    chances /= chances.sum()
    negatives = torch.multinomial(chances, draws * count, replacement=True).view(draws, count)
    losses = sampled_softmax_loss(
        q.expand(draws, 4), e, torch.zeros(draws, dtype=torch.int64), negatives,
        log_q=(chances * count).log(), reduction="none",
    )  # fmt: skip
    a = (q @ e[0]).double() - float((chances[0] * count).log())
    found = (losses.double().expm1() * a.exp()).mean()
    assert float(found) == pytest.approx(float((q @ e.T).double().exp().sum()), rel=0.03)


def test_one_negative_makes_bpr_of_the_softmax() -> None:
    made = call(20, 1, 30, 8)
    torch.testing.assert_close(bpr_loss(*made[:4]), sampled_softmax_loss(*made[:4]))


@SHARED
@EVERY
def test_repeated_ids_are_several_negatives(tiny_tiles: None, loss: str, shared: bool) -> None:
    """Inside a row and across rows: everybody has the same three items."""
    made = call(9, 12, 3, 5, shared=shared)
    ours = agrees(LOSSES[loss], made)
    assert all(t.abs().sum() > 0 for t in ours)


@EVERY
def test_equal_items_share_alike(loss: str) -> None:
    made = call(6, 4, 4, 5)
    made = made._replace(
        items=made.items[:1].repeat(4, 1), positives=torch.zeros(6, dtype=torch.int64),
        negatives=torch.tensor([[1, 2, 3]]).expand(6, 3), log_q=torch.zeros(4),
    )  # fmt: skip
    _, _, de, *_ = agrees(LOSSES[loss], made)
    assert de[1].any()
    torch.testing.assert_close(de[1:], de[1].expand(3, 5))


# ---- which rows count ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocked", "reference"])
@SHARED
@EVERY
def test_rows_without_a_positive_or_a_negative_do_not_count(
    tiny_tiles: None, loss: str, shared: bool, name: str
) -> None:
    """Whatever stands in them: their queries are NaN here."""
    made = call(6, 3, 8, 4, shared=shared, drop_hits=True, reduction="mean")
    positives = torch.tensor([1, -1, 2, 3, -1, 4])
    negatives = torch.tensor([2, 2, 2]) if shared else torch.tensor(
        [[2, 3, -1], [1, 2, 3], [-1, 2, 2], [-1, -1, -1], [-1, -1, -1], [4, 4, 5]]
    )  # fmt: skip
    counting = [0, 3, 5] if shared else [0, 5]
    out = [row for row in range(6) if row not in counting]
    made = made._replace(positives=positives, negatives=negatives)
    made.queries[out] = torch.nan
    with backend(name):
        loss_all, dq, *others = gradients(LOSSES[loss], made, torch.ones(()))
        made.options["reduction"] = "none"
        rows, *_ = gradients(LOSSES[loss], made, torch.ones(6))
        alone = made._replace(
            queries=made.queries[counting],
            positives=positives[counting],
            negatives=negatives if shared else negatives[counting],
        )
        alone.options["reduction"] = "mean"
        loss_some, dq_some, *others_some = gradients(LOSSES[loss], alone, torch.ones(()))
    assert not rows[out].any() and (rows[counting] > 0).all()
    assert not dq[out].any()
    pairs = [(loss_all, loss_some), (dq[counting], dq_some), *zip(others, others_some, strict=True)]
    for all_rows, some in pairs:
        torch.testing.assert_close(all_rows, some)


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@EVERY
def test_without_a_row_that_counts_loss_and_gradients_are_zero(
    loss: str, shared: bool, reduction: str, name: str
) -> None:
    made = call(4, 3, 5, 6, shared=shared, reduction=reduction)
    made.negatives.fill_(-1)
    with backend(name):
        found = gradients(LOSSES[loss], made, upstream_of(made))
    assert not any(t.any() for t in found)


# ---- numbers at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocked", "reference"])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4, 1e8])
@SHARED
@EVERY
def test_extreme_logits_stay_finite(
    tiny_tiles: None, loss: str, shared: bool, size: float, name: str
) -> None:
    with backend(name):
        extreme_logits_stay_finite(loss, shared, size)


@EVERY
def test_small_losses_keep_their_digits(loss: str) -> None:
    q = torch.tensor([[20.0]])
    e = torch.tensor([[1.0], [-1.0]])
    kind = LOSSES[loss]
    rows = kind.function(q, e, torch.tensor([0]), torch.tensor([[1]]), **kind.options)
    once = math.log1p(math.exp(-20))
    expected = {"bce": 2 * once, "gbce": 1.3 * once}.get(loss, math.log1p(math.exp(-40)))
    assert float(rows) == pytest.approx(expected, rel=1e-5)


def test_large_losses_do_not_saturate() -> None:
    """Where log(sigmoid + 1e-24) ends at 55 with no gradient, the loss goes on and pulls."""
    q = torch.tensor([[100.0]], requires_grad=True)
    e = torch.tensor([[-1.0], [1.0]])
    loss = bce_loss(q, e, torch.tensor([0]), torch.tensor([[1]]))
    assert float(loss.detach()) == pytest.approx(200)
    assert float(torch.autograd.grad(loss, q)[0]) == pytest.approx(2)


# ---- ids and arguments ---------------------------------------------------------------------------


def test_ids_are_checked_where_the_host_reads_them() -> None:
    made = call(3, 4, 6, 5)
    q, e, p, n = made[:4]
    for bad in (6, -2, 2**40):
        with pytest.raises(IndexError, match=rf"positives\[1\] is {bad}; .*\[0, 6\) or -1"):
            bce_loss(q, e, torch.tensor([0, bad, 1]), n)
        wrong = n.clone()
        wrong[2, 3] = bad
        with pytest.raises(IndexError, match=rf"negatives\[2, 3\] is {bad}"):
            bpr_loss(q, e, p, wrong)
        with pytest.raises(IndexError, match=rf"negatives\[1\] is {bad}"):
            sampled_softmax_loss(q, e, p, torch.tensor([0, bad]))


IDS = """
import torch
from seqrec_kernels import bce_loss
try:
    torch.compile(bce_loss, fullgraph=True, backend="aot_eager")(
        torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1]), torch.tensor([[1], [4]])
    )
except IndexError as error:
    print(error)
"""


def test_ids_are_checked_inside_compiled_graphs_on_request() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDS], env={**os.environ, "SEQREC_CHECK_IDS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("negatives[1, 0] is 4; it must be in [0, 4) or -1")


def test_arguments_are_named_with_their_value() -> None:
    q, e = torch.randn(3, 4), torch.randn(6, 4)
    p, n = torch.arange(3), torch.ones(3, 2, dtype=torch.int64)
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, r"queries must be a torch.Tensor, not list", ([1], e, p, n), {}),
        (TypeError, r"queries are torch.float32 but items are torch.float16",
         (q, e.half(), p, n), {}),
        (ValueError, r"queries have width 4 but items have width 3", (q, e[:, :3], p, n), {}),
        (ValueError, r"items has no rows", (q, e[:0], p, n), {}),
        (TypeError, r"positives must be int64, not torch.int32", (q, e, p.int(), n), {}),
        (ValueError, r"positives must be \[3\], not \(2,\)", (q, e, p[:2], n), {}),
        (TypeError, r"negatives must be int64, not torch.float32", (q, e, p, n.float()), {}),
        (ValueError, r"negatives must be \[3, N\] or \[N\], not \(2, 2\)", (q, e, p, n[:2]), {}),
        (ValueError, r"negatives must be \[3, N\] or \[N\], not \(\)", (q, e, p, n[0, 0]), {}),
        (TypeError, r"log_q must be torch.float32 beside queries of .*, not torch.float64",
         (q, e, p, n), {"log_q": torch.zeros(6, dtype=torch.float64)}),
        (ValueError, r"log_q must be \[6\], not \(5,\)", (q, e, p, n), {"log_q": torch.zeros(5)}),
        (TypeError, r"drop_hits must be a bool, not int", (q, e, p, n), {"drop_hits": 1}),
        (ValueError, r"temperature is 0", (q, e, p, n), {"temperature": 0}),
        (ValueError, r"reduction is 'avg'", (q, e, p, n), {"reduction": "avg"}),
    ]  # fmt: skip
    for kind, message, arguments, options in cases:
        with pytest.raises(kind, match=message):
            sampled_softmax_loss(*arguments, **options)
    with pytest.raises(ValueError, match="beta is -1"):
        bce_loss(q, e, p, n, beta=-1.0)
    for function in (bce_loss, bpr_loss):
        with pytest.raises(ValueError, match=f"log_q corrects .* only; {function.__name__} must"):
            function(q, e, p, n, log_q=torch.zeros(6))  # type: ignore[operator]


def test_a_dtensor_is_refused_in_one_line() -> None:
    class DTensor(Tensor):
        pass

    made = call(3, 4, 6, 5)
    with pytest.raises(TypeError, match="items is a DTensor") as caught:
        bce_loss(made.queries, made.items.as_subclass(DTensor), *made[2:4])
    assert "\n" not in str(caught.value)


# ---- the module forms ----------------------------------------------------------------------------


def test_the_modules_are_the_functions() -> None:
    made: Call = call(5, 6, 9, 4)
    nn = seqrec_kernels.nn
    fixed: dict[str, Any] = {"temperature": 0.5, "reduction": "sum", "drop_hits": True}
    log_q = {"log_q": made.log_q}
    cases: list[tuple[torch.nn.Module, Any, dict[str, Any], dict[str, Any]]] = [
        (nn.BCELoss(beta=0.3, **fixed), bce_loss, {**fixed, "beta": 0.3}, {}),
        (nn.BPRLoss(**fixed), bpr_loss, fixed, {}),
        (nn.SampledSoftmaxLoss(**fixed), sampled_softmax_loss, fixed, log_q),
    ]
    for module, function, numbers, more in cases:
        assert torch.equal(module(*made[:4], **more), function(*made[:4], **numbers, **more))
        assert "temperature=0.5" in repr(module)
        assert not list(module.parameters())
    with pytest.raises(ValueError, match="beta is nan"):
        nn.BCELoss(beta=math.nan)
