"""bfloat16 in C++, in every instruction set: products of pairs, and float32 where there are none.

A version with products of pairs rounds probabilities, and queries times their factors, before they
enter the products of the gradients. What that may cost, term by term, is what the gradients of the
loss are held to here; the loss itself is as exact as from float32 products.
"""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cross_entropy_calls import gradients, neither_threads_nor_repetition_change_a_bit, problem
from native_versions import threads, version  # noqa: F401 (fixtures)
from ranking_calls import whole
from torch import Tensor

from seqrec_kernels import catalog_cross_entropy, catalog_rank, catalog_topk, native

ROUNDING = 2.0**-8  # the relative error of a number rounded to bfloat16


def narrow(*tensors: Tensor) -> list[Tensor]:
    return [t.bfloat16() for t in tensors]


def allowed(q: Tensor, e: Tensor, options: dict[str, Any], exact: list[Tensor]) -> list[Tensor]:
    """How far each gradient may be off: a rounding of every term, two in items, one of the result.

    For hard labels and a mean loss with an upstream gradient of 1.
    """
    q, e = q.double(), e.double()
    first, temperature = options.get("first_item", 0), options.get("temperature", 1.0)
    bias = options.get("item_bias")
    logits = q @ e.T / temperature + (0 if bias is None else bias)
    logits[:, :first] = -torch.inf
    share = logits.softmax(1) / q.shape[0]
    terms = [share @ e.abs() / temperature, 2.01 * share.T @ q.abs() / temperature, share.sum(0)]
    found = []
    for term, true in zip(terms, exact, strict=False):
        rounded = 0 if true is exact[-1] and bias is not None else true.abs()  # bias is float32
        found.append(ROUNDING * 1.01 * (term + rounded) + 1e-6 * term.max())
    return found


def agrees(q: Tensor, e: Tensor, y: Tensor, options: dict[str, Any]) -> None:
    ours = gradients(catalog_cross_entropy, q, e, y, options, torch.ones(()))
    exact = gradients(oracles.cross_entropy, q, e, y, options, torch.ones(()), torch.float64)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    bounds = allowed(q, e, options, exact[1:])
    for name, our, true, bound in zip("qeb", ours[1:], exact[1:], bounds, strict=False):
        assert our.isfinite().all(), name
        excess = (our.double() - true).abs() - bound
        assert (excess <= 0).all(), f"{name}: {float(excess.max()):.3g} too far off"


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 2, 8), (63, 5, 3), (64, 575, 16), (65, 577, 50), (66, 290, 64), (2, 97, 123)],
)
def test_agrees_with_float64_on_odd_shapes(shape: tuple[int, int, int], plan: str) -> None:
    q, e, y, options = problem(*shape, bias=True, first=min(1, shape[1] - 1))
    agrees(*narrow(q, e), y, options)


@pytest.mark.parametrize("shape", [(130, 2609, 33), (66, 4700, 17), (250, 700, 64)])
def test_agrees_with_float64_over_chunks_and_blocks(
    shape: tuple[int, int, int],
    plan: str,
) -> None:
    q, e, y, options = problem(*shape)
    agrees(*narrow(q, e), y, options)


def test_soft_labels_and_every_reduction(plan: str) -> None:
    """Label terms are exact in float32: a gradient is off no more than torch's in bfloat16."""
    q, e, y, options = problem(66, 300, 50, 3, bias=True)
    q, e, options["weights"] = narrow(q, e, options["weights"])
    for reduction in ("mean", "sum", "none"):
        options["reduction"] = reduction
        upstream = torch.randn(66 if reduction == "none" else ())
        ours = gradients(catalog_cross_entropy, q, e, y, options, upstream)
        exact = gradients(oracles.cross_entropy, q, e, y, options, upstream, torch.float64)
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-5)
        for our, true in zip(ours[1:], exact[1:], strict=True):
            assert float((our.double() - true).norm()) <= ROUNDING * float(true.norm())


def test_is_no_further_off_than_torch_in_bfloat16(plan: str) -> None:
    q, e, y, _ = problem(200, 3000, 64)
    q, e = narrow(0.6 * q, 0.6 * e)
    found = {}
    for name, loss_of, dtype in (
        ("ours", catalog_cross_entropy, None),
        ("torch", lambda q, e, y: F.cross_entropy(q @ e.T, y), None),
        ("exact", lambda q, e, y: F.cross_entropy(q @ e.T, y), torch.float64),
    ):
        found[name] = gradients(loss_of, q, e, y, {}, torch.ones(()), dtype)
    for our, plain, true in zip(*found.values(), strict=True):
        oracles.close(our, true, plain, "gradient")
        norms = [float((t.double() - true).detach().norm()) for t in (our, plain)]
        assert norms[0] <= norms[1]


def test_neither_threads_nor_repetition_change_a_bit(plan: str, threads: int) -> None:  # noqa: F811
    q, e, y, options = problem(150, 4700, 20, 2, bias=True, first=1)
    q, e, options["weights"] = narrow(q, e, options["weights"])
    neither_threads_nor_repetition_change_a_bit(q, e, y, options, threads)


@pytest.mark.parametrize("wanted", ["q", "e", "b"])
def test_a_gradient_alone_is_as_near_as_with_the_others(wanted: str, plan: str) -> None:
    q, e, y, options = problem(70, 700, 21, bias=True)
    q, e = narrow(q, e)
    exact = gradients(oracles.cross_entropy, q, e, y, options, torch.ones(()), torch.float64)
    place = "qeb".index(wanted)
    bound = allowed(q, e, options, exact[1:])[place]
    given = [q, e, options.pop("item_bias")]
    given[place].requires_grad_()
    loss = catalog_cross_entropy(given[0], given[1], y, item_bias=given[2], **options)
    found = torch.autograd.grad(loss, given[place])[0].double()
    assert ((found - exact[1 + place]).abs() <= bound).all()


@pytest.mark.parametrize("d", [1, 15, 16, 17, 32])
def test_what_lies_beside_a_row_is_not_read(d: int) -> None:
    """Rows of a wider table full of NaN, transposed ones, and ones on no boundary."""
    around = [torch.full((n, 50), torch.nan).bfloat16() for n in (40, 90)]
    for t in around:
        t[:, :d] = torch.randn(t.shape[0], d)
    flat = torch.randn(91 * d + 7).bfloat16()
    tables = {
        "within": (around[0][:, :d], around[1][:, :d]),
        "turned": (torch.randn(d, 40).bfloat16().T, torch.randn(d, 90).bfloat16().T),
        "unaligned": (flat[3 : 40 * d + 3].view(40, d), flat[7 : 90 * d + 7].view(90, d)),
        "expanded": (torch.randn(1, d).bfloat16().expand(40, d), around[1][:, :d]),
    }
    y = torch.randint(90, (40,))
    for name, (q, e) in tables.items():
        copies = q.clone(memory_format=torch.contiguous_format), e.clone().contiguous()
        for a, b in zip(
            gradients(catalog_cross_entropy, q, e, y, {}, torch.ones(())),
            gradients(catalog_cross_entropy, *copies, y, {}, torch.ones(())),
            strict=True,
        ):
            assert a.isfinite().all() and torch.equal(a, b), name
        assert torch.equal(catalog_rank(q, e, y).greater, catalog_rank(*copies, y).greater), name
        ours, same = catalog_topk(q, e, 9), catalog_topk(*copies, 9)
        assert torch.equal(ours.ids, same.ids) and torch.equal(ours.scores, same.scores), name


def test_rising_logits_move_the_shift_again_and_again(plan: str) -> None:
    q, e = narrow(torch.ones(65, 1), torch.linspace(-90, 90, 6000)[:, None])
    agrees(q, e, torch.randint(6000, (65,)), {})


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e15])
def test_extreme_logits_stay_finite(size: float, plan: str) -> None:
    q, e, y, _ = problem(66, 700, 4)
    e[:, 0] = 1.0
    q, e = narrow(q * size, e)
    found = gradients(catalog_cross_entropy, q, e, y, {}, torch.ones(()))
    exact = gradients(oracles.cross_entropy, q, e, y, {}, torch.ones(()), torch.float64)
    for our, true in zip(found, exact, strict=True):
        assert our.isfinite().all()
        assert float((our.double() - true).norm()) <= 2 * ROUNDING * float(true.norm())


def test_a_catalogue_whose_beginning_is_taken_out(plan: str) -> None:
    """No logit of the first tile is finite, so the first shift is found later."""
    q, e, y, _ = problem(66, 1500, 8)
    q, e = narrow(q, e)
    kept = torch.arange(1500) >= 700
    y = torch.where(kept[y], y, 900)
    bias = torch.where(kept, 0.0, -torch.inf)
    ours = gradients(catalog_cross_entropy, q, e, y, {"item_bias": bias}, torch.ones(()))
    assert not ours[2][~kept].any() and not ours[3][~kept].any()
    exact = gradients(oracles.cross_entropy, q, e[kept], y - 700, {}, torch.ones(()), torch.float64)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    for our, true in zip((ours[1], ours[2][kept]), exact[1:], strict=True):
        assert float((our.double() - true).norm()) <= 2 * ROUNDING * float(true.norm())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_no_number_spoils_no_other_rows_loss(value: float, plan: str) -> None:
    q, e, y, _ = problem(66, 700, 8)
    q[3, 2] = value
    q, e = narrow(q, e)
    loss = catalog_cross_entropy(q, e, y, reduction="none")
    assert loss[3].isnan() and loss.isnan().sum() == 1
    leaves = oracles.leaves(q, e)
    total = catalog_cross_entropy(*leaves, y)
    found = torch.autograd.grad(total, leaves[0])[0]
    assert total.isnan() and found[3].isnan().all() and found.isnan().any(1).sum() == 1


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 95, 5), (64, 97, 50), (130, 96, 131)])
def test_rank_and_topk_count_every_comparison(
    shape: tuple[int, int, int],
    threads: int,  # noqa: F811
) -> None:
    b, v, d = shape
    q, e, bias = whole(b, d), whole(v, d), torch.randint(-1, 2, (v,)).float()
    y = torch.randint(v, (b, 2))
    scores = (q.double() @ e.double().T + bias).tolist()
    q, e = narrow(q, e)
    ours = catalog_rank(q, e, y, item_bias=bias)
    greater, equal = oracles.rank(scores, y.tolist(), 0, None, None)
    assert ours.greater.tolist() == greater and ours.equal.tolist() == equal
    best = catalog_topk(q, e, v + 2, item_bias=bias)
    assert best.ids.tolist() == oracles.topk(scores, v + 2, 0, None)


@pytest.mark.parametrize("d", [1, 2, 33, 64, 127])
def test_a_target_scores_what_its_competitors_score(d: int) -> None:
    q, e = narrow(torch.randn(70, d), torch.randn(800, d))
    best = catalog_topk(q, e, 60)
    ranks = catalog_rank(q, e, best.ids)
    ties = best.scores[:, :, None] == best.scores[:, None, :]
    # every rank is the place in the list, but for scores of equal bits
    assert (ranks.greater <= torch.arange(60)).all()
    level = ranks.equal[:, :-1] == ties.sum(2)[:, :-1] - 1
    last = best.scores[:, :-1] == best.scores[:, -1:]  # its ties may go on behind the list's end
    assert (level | last).all()
    assert torch.equal(ranks.greater, (best.scores[:, None, :] > best.scores[:, :, None]).sum(2))


def test_nan_and_both_zeros_keep_their_order() -> None:
    q = torch.ones(2, 3).bfloat16()
    e = torch.tensor([1.0, torch.nan, -torch.inf, 2.0, torch.inf, 0.0, -0.0])[:, None]
    e = torch.cat([e, torch.zeros(7, 2)], 1).bfloat16()
    assert catalog_topk(q, e, 7).ids[1].tolist() == [4, 3, 0, 5, 6, -1, -1]
    ours = catalog_rank(q, e, torch.tensor([1, 5]))
    assert ours.greater.tolist() == [6, 3] and ours.equal.tolist() == [0, 1]


def test_products_of_pairs_are_picked_where_the_processor_has_them() -> None:
    """Both versions are right, so a wrong choice would show in nothing but time."""
    q, e, y, options = problem(64, 700, 40)
    q, e = narrow(q, e)
    if "avx512_bf16" not in native.versions():
        pytest.skip("this processor does not multiply pairs")
    found = {}
    for name in ("avx512_bf16", "avx512"):
        with native.version(name):
            found[name] = gradients(catalog_cross_entropy, q, e, y, options, torch.ones(()))
    assert native.versions()[0] == "avx512_bf16"
    assert not torch.equal(found["avx512_bf16"][2], found["avx512"][2])
