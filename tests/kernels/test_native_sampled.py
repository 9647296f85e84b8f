"""The sampled losses in C++, in every instruction set, against float64 and against itself."""

from __future__ import annotations

from itertools import product

import oracles
import pytest
import torch
from native_versions import threads, version  # noqa: F401 (fixtures)
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

from seqrec_kernels import backend, bce_loss, sampled_softmax_loss
from seqrec_kernels import native as library
from seqrec_kernels.ops.sampled import native
from seqrec_kernels.ops.sampled.problem import Problem

EVERY = pytest.mark.parametrize("loss", LOSSES)
LEADING = pytest.mark.parametrize("loss", ["gbce", "bpr", "corrected"])
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@EVERY
def test_agrees_with_float64(loss: str, shared: bool, reduction: str) -> None:
    for drop_hits in (False, True):
        made = call(70, 9, 6, 5, shared=shared, drop_hits=drop_hits, reduction=reduction, size=2.0)
        agrees(LOSSES[loss], made)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 15, 9, 8), (17, 16, 3, 16), (33, 17, 40, 50), (5, 130, 33, 123),
     (129, 2, 50, 64), (3, 70, 90, 200)],
    ids=str,
)  # fmt: skip
@SHARED
@EVERY
def test_agrees_with_float64_on_odd_shapes(
    loss: str, shared: bool, shape: tuple[int, int, int, int]
) -> None:
    agrees(LOSSES[loss], call(*shape, shared=shared, drop_hits=True, size=3.0))


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (0, 0, 3, 5), (3, 0, 2, 5), (3, 4, 2, 0)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@LEADING
def test_empty_sides(
    reduction: str, shape: tuple[int, int, int, int], shared: bool, loss: str
) -> None:
    made = call(*shape, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    ours = gradients(LOSSES[loss], made, upstream)
    for our, true in zip(ours, exact(LOSSES[loss], made, upstream), strict=True):
        assert our.dtype == torch.float32
        torch.testing.assert_close(our.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [24, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@SHARED
@LEADING
def test_narrow_inputs_are_summed_in_float32_and_rounded_once(
    loss: str, shared: bool, dtype: torch.dtype, width: int
) -> None:
    made = call(67, 11, 8, width, shared=shared)
    made = made._replace(queries=made.queries.to(dtype), items=made.items.to(dtype))
    upstream = upstream_of(made)
    ours = gradients(LOSSES[loss], made, upstream)
    right = exact(LOSSES[loss], made, upstream)
    assert [t.dtype for t in ours[:3]] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(ours[0].double(), right[0], rtol=3e-6, atol=3e-6)
    half = torch.finfo(dtype).eps / 2
    tiny = torch.finfo(dtype).smallest_normal
    for our, true in zip(ours[1:3], right[1:3], strict=True):
        assert ((our.double() - true).abs() <= half * 1.01 * true.abs() + 3e-6 + tiny).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@SHARED
@LEADING
def test_neither_threads_nor_repetition_nor_blocks_of_rows_change_a_bit(
    loss: str,
    shared: bool,
    reduction: str,
    threads: int,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many rows of few items, so that every thread has something to add to each."""
    kind, made = LOSSES[loss], call(700, 40, 130, 20, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    ours = gradients(kind, made, upstream)
    again = gradients(kind, made, upstream)
    torch.set_num_threads(1)
    alone = gradients(kind, made, upstream)
    torch.set_num_threads(threads)
    for a, b, c in zip(ours, again, alone, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    monkeypatch.setattr(native, "WORKSPACE", 1)  # as few rows of a block as there can be
    for a, b in zip(ours, gradients(kind, made, upstream), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
def test_a_gradient_does_not_depend_on_which_others_are_wanted(
    shared: bool, reduction: str
) -> None:
    made = call(70, 9, 30, 20, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    everything = gradients(LOSSES["corrected"], made, upstream)[1:]
    for wanted in product([False, True], repeat=3):
        if not any(wanted):
            continue
        given = zip((made.queries, made.items, made.log_q), wanted, strict=True)
        q, e, log_q = (t.clone().requires_grad_(want) for t, want in given)
        value = sampled_softmax_loss(q, e, *made[2:4], log_q=log_q, **made.options)
        value.backward(upstream)
        for t, want, whole in zip((q, e, log_q), wanted, everything, strict=True):
            if want:
                assert t.grad is not None and torch.equal(t.grad, whole)
            else:
                assert t.grad is None


@SHARED
def test_strided_expanded_and_unaligned_inputs_none_written(shared: bool) -> None:
    ids = torch.randint(-1, 90, (40, 14))
    n = ids[:, 3] if shared else ids[:, 1::2]
    p = ids[:, 0]
    tables = {
        "columns": (torch.randn(40, 32)[:, ::2], torch.randn(16, 90).T),
        "expanded": (torch.randn(1, 16).expand(40, 16), torch.randn(1, 16).expand(90, 16)),
        "unaligned": (torch.randn(41, 16).view(-1)[7:647].view(40, 16), torch.randn(91, 16)[1:]),
        "overlapping": (torch.randn(55).as_strided((40, 16), (1, 1)), torch.randn(90, 16)),
    }
    for name, (q, e) in tables.items():
        log_q = torch.randn(180)[::2]
        copies = [t.clone() for t in (q, e, log_q, ids)]
        ours, straight = [], []
        for into, (a, b, c), these in (
            (ours, (q, e, log_q), (p, n)),
            (straight, (q.contiguous(), e.contiguous(), log_q.contiguous()),
             (p.contiguous(), n.contiguous())),
        ):  # fmt: skip
            a, b, c = (t.detach().requires_grad_() for t in (a, b, c))
            value = sampled_softmax_loss(a, b, *these, log_q=c)
            into.extend([value, *torch.autograd.grad(value, (a, b, c))])
        for a, b in zip((q, e, log_q, ids), copies, strict=True):
            assert torch.equal(a, b), name
        for a, b in zip(ours, straight, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4, 1e8])
@SHARED
@EVERY
def test_extreme_logits_stay_finite(loss: str, shared: bool, size: float) -> None:
    extreme_logits_stay_finite(loss, shared, size)


@pytest.mark.parametrize("size", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_softplus_and_its_slope_are_exact_to_rounding(loss: str, size: float) -> None:
    """Every logit on its own, near 0 and where one side of it vanishes."""
    logits = torch.randn(4000, 1) * size
    items = torch.tensor([[1.0], [0.0]])
    rows = torch.ones(4000, dtype=torch.int64)
    made = Call(logits, items, rows, (rows - 1)[:, None], torch.zeros(2), {"reduction": "none"})
    losses, slopes, _ = gradients(LOSSES[loss], made, torch.ones(4000))
    x = logits[:, 0].double()
    exactly = torch.nn.functional.softplus(x, threshold=100)
    if loss == "bce":
        exactly = exactly + torch.log(torch.tensor(2.0, dtype=torch.float64))  # the positive's
    torch.testing.assert_close(losses.double(), exactly, rtol=4e-7, atol=0)
    torch.testing.assert_close(slopes[:, 0].double(), torch.sigmoid(x), rtol=4e-7, atol=0)


@SHARED
@EVERY
def test_a_query_that_is_nan_spoils_no_other_row(loss: str, shared: bool) -> None:
    made = call(70, 6, 9, 5, shared=shared, reduction="none")
    made = made._replace(positives=made.positives.clamp(min=0))
    clean = gradients(LOSSES[loss], made, torch.ones(70))[:2]
    made.queries[3] = torch.nan
    found = gradients(LOSSES[loss], made, torch.ones(70))[:2]
    others = [row for row in range(70) if row != 3]
    assert found[0][3].isnan()
    for ours, theirs in zip(found, clean, strict=True):
        assert torch.equal(ours[others], theirs[others])


@SHARED
@EVERY
def test_rows_that_do_not_count_may_hold_nan(loss: str, shared: bool) -> None:
    made = call(70, 4, 9, 5, shared=shared, drop_hits=True)
    nothing = made.positives == -1
    assert nothing.any()
    expected = gradients(LOSSES[loss], made, torch.ones(()))
    made.queries[nothing] = torch.nan
    found = gradients(LOSSES[loss], made, torch.ones(()))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@SHARED
@EVERY
def test_a_wrong_id_makes_its_row_nan_and_touches_nothing(loss: str, shared: bool) -> None:
    made, kind = call(6, 4, 9, 5, shared=shared, reduction="none"), LOSSES[loss]
    right = made._replace(positives=torch.arange(6), negatives=made.negatives.clone())
    bad = right._replace(positives=torch.arange(6), negatives=made.negatives.clone())
    if shared:
        bad.negatives[1], right.negatives[1] = 9, -1
        wrong = list(range(6))
    else:
        for row, value in ((0, 9), (3, -(2**40)), (5, 2**62)):
            bad.negatives[row, 1], right.negatives[row, 1] = value, -1
        bad.positives[2], right.positives[2] = -2, -1
        wrong = [0, 2, 3, 5]
    compiled = torch.compile(kind.function, fullgraph=True, backend="aot_eager")
    losses, *found = gradients(kind, bad, torch.ones(6), function=compiled)
    expected, *others = gradients(kind, right, torch.ones(6))
    assert losses.isnan().tolist() == [row in wrong for row in range(6)]
    fine = [row for row in range(6) if row not in wrong]
    assert torch.equal(losses[fine], expected[fine])
    assert all(torch.equal(x, y) for x, y in zip(found, others, strict=True))


def test_the_graph_may_be_walked_twice_and_never_differentiated() -> None:
    made = call(20, 6, 9, 5)
    for reduction in ("mean", "none"):
        q, e = oracles.leaves(made.queries, made.items)
        value = bce_loss(q, e, *made[2:4], reduction=reduction)
        upstream = torch.randn_like(value)
        first = torch.autograd.grad(value, (q, e), upstream, retain_graph=True)
        second = torch.autograd.grad(value, (q, e), upstream, retain_graph=True)
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        (slope,) = torch.autograd.grad(value.sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
            slope.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@SHARED
def test_compiled_gives_the_bits_of_eager(shared: bool, reduction: str) -> None:
    made = call(20, 6, 25, 8, shared=shared, reduction=reduction)
    upstream = upstream_of(made)
    compiled = torch.compile(sampled_softmax_loss, fullgraph=True, backend="aot_eager")
    eager = gradients(LOSSES["corrected"], made, upstream)
    traced = gradients(LOSSES["corrected"], made, upstream, function=compiled)
    assert all(torch.equal(x, y) for x, y in zip(eager, traced, strict=True))


@SHARED
def test_what_forward_saves_has_the_shapes_that_tracing_promises(shared: bool) -> None:
    made = call(5, 4, 7, 6, shared=shared)
    for reduction, needs in product(REDUCTIONS, product([False, True], repeat=3)):
        problem = Problem(*made[:5], "softmax", 0.7, 1.0, False, reduction)
        loss, saved = native.forward(problem, list(needs))
        assert [tuple(t.shape) for t in saved] == native.saved_shapes(problem, list(needs))
        assert all(t.dtype == torch.float32 for t in [loss, *saved])


def test_a_version_that_adds_to_another_runs_its_kernels(version: str) -> None:  # noqa: F811
    """avx512_bf16 has no kernels of its own here: its bits are avx512's, not the portable ones'."""
    made = call(30, 50, 40, 64)

    def bits(name: str) -> list[Tensor]:
        with library.version(name), backend("native"):
            return gradients(LOSSES["bce"], made, torch.ones(()))

    if version != "avx512_bf16":
        pytest.skip(f"{version} adds to no other")
    ours, base, portable = bits(version), bits("avx512"), bits("portable")
    assert all(torch.equal(x, y) for x, y in zip(ours, base, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(ours, portable, strict=True))
