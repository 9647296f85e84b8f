"""The triton kernels of catalog_cross_entropy against a float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
import triton_device
from torch import Tensor
from triton_device import DEVICE

from seqrec_kernels import backend, catalog_cross_entropy
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton
tiny_tiles = triton_device.tiny_tiles

NAMES = ("queries", "items", "item_bias")


def call(
    m: int, v: int, d: int, slots: int | None = None, *, bias: bool = False, first: int = 0
) -> dict[str, Any]:
    """The arguments of a random call, on the CPU."""
    shape = (m,) if slots is None else (m, slots)
    given: dict[str, Any] = {
        "queries": torch.randn(m, d),
        "items": torch.randn(v, d) / d**0.5,
        "targets": torch.randint(first, v, shape),
        "first_item": first,
        "temperature": 0.7,
    }
    if slots is not None:
        given["targets"][torch.rand(shape) < 0.3] = -1
        given["weights"] = torch.rand(shape)
    if bias:
        given["item_bias"] = torch.randn(v)
    return given


def run(
    loss_of: Callable[..., Tensor],
    given: dict[str, Any],
    upstream: Tensor,
    device: str = DEVICE,
    dtype: torch.dtype | None = None,
    wanted: tuple[str, ...] = NAMES,
) -> list[Tensor]:
    """The loss, and the gradients wanted of those there are, back on the CPU."""
    given = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in given.items()}
    for name in ("queries", "items", "weights", "item_bias"):
        if name in given and dtype is not None:
            given[name] = given[name].to(dtype)
    inputs = []
    for name in wanted:
        if name in given:
            given[name] = given[name].detach().requires_grad_()
            inputs.append(given[name])
    loss = loss_of(**given)
    found = torch.autograd.grad(loss, inputs, upstream.to(device, loss.dtype))
    return [t.cpu() for t in (loss.detach(), *found)]


def upstream_of(given: dict[str, Any]) -> Tensor:
    rows = given["queries"].shape[0]
    return torch.randn(rows if given.get("reduction") == "none" else ())


def agrees(given: dict[str, Any]) -> None:
    """Loss and gradients are as near to float64 as dense float32 torch is, twice over."""
    upstream = upstream_of(given)
    exact = run(oracles.cross_entropy, given, upstream, "cpu", torch.float64)
    with backend("reference"):
        plain = run(catalog_cross_entropy, given, upstream, "cpu")
    ours = run(catalog_cross_entropy, given, upstream)
    for name, our, true, dense in zip(("loss", "dq", "de", "db"), ours, exact, plain, strict=False):
        oracles.close(our, true, dense, name)


@pytest.mark.parametrize(("slots", "reduction"), [(None, "mean"), (3, "none"), (2, "sum")])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 5), (17, 123, 50), (33, 64, 31)])
def test_agrees_with_float64(
    tiny_tiles: None, shape: tuple[int, int, int], slots: int | None, reduction: str
) -> None:
    given = call(*shape, slots, bias=slots is not None, first=min(2, shape[1] - 1))
    agrees({**given, "reduction": reduction})


@pytest.mark.parametrize("shape", [(70, 300, 50), (3, 257, 200)])
def test_agrees_with_float64_in_the_tiles_it_ships_with(shape: tuple[int, int, int]) -> None:
    agrees({**call(*shape, 2, bias=True, first=1), "reduction": "none"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_narrow_inputs_round_each_probability_once(
    tiny_tiles: None, dtype: torch.dtype, reduction: str
) -> None:
    given = {**call(19, 90, 24, 2, bias=True), "reduction": reduction}
    for name in ("queries", "items", "weights"):
        given[name] = given[name].to(dtype)
    upstream = upstream_of(given)
    ours = run(catalog_cross_entropy, given, upstream)
    exact = run(oracles.cross_entropy, given, upstream, "cpu", torch.float64)
    assert [t.dtype for t in ours] == [torch.float32, dtype, dtype, torch.float32]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(ours[3].double(), exact[3], rtol=1e-5, atol=1e-6)
    # half a unit in the last place for each probability and for the sum; the interpreter cuts
    # bfloat16 off instead of rounding it
    cut = triton_device.INTERPRETED and dtype == torch.bfloat16
    unit = torch.finfo(dtype).eps * (1 if cut else 0.5)
    q, e = given["queries"].double(), given["items"].double()
    x = q @ e.T / 0.7 + given["item_bias"].double()
    filled = given["targets"] != -1
    mass = (given["weights"].double() * filled).sum(1)
    share = upstream.double().abs() * mass
    if reduction == "mean":
        share = share / filled.any(1).sum()
    p = x.softmax(1) * share[:, None] / 0.7
    for our, true, parts in zip(ours[1:3], exact[1:3], (p @ e.abs(), p.T @ q.abs()), strict=True):
        allowed = 1.01 * unit * (true.abs() + parts) + 3e-6
        assert ((our.double() - true).abs() <= allowed).all()


def test_float16_keeps_what_a_probability_below_its_range_adds() -> None:
    q, e = 1 + torch.rand(8, 16), -0.02 * torch.rand(64, 16)
    e[0] = 0.75  # all others have probabilities about 1e-8; float16 ends at 6e-8
    given = {
        "queries": q.half(), "items": e.half(),
        "targets": torch.zeros(8, dtype=torch.int64), "reduction": "none",
    }  # fmt: skip
    upstream = 2.0**20 * torch.linspace(1, 3, 8)  # what a gradient scaler does
    exact = run(oracles.cross_entropy, given, upstream, "cpu", torch.float64)[2][1:]
    found = run(catalog_cross_entropy, given, upstream)[2][1:]
    assert (exact > 0.01).all()
    assert ((found - exact).abs() <= 0.002 * exact).all()


def test_bad_targets_are_not_followed_and_their_rows_are_nan(tiny_tiles: None) -> None:
    from seqrec_kernels.ops.catalog_cross_entropy import triton_kernels

    m, v = 9, 50
    given = call(m, v, 8, 2, bias=True, first=3)
    given["targets"] = torch.randint(3, v, (m, 2))
    good = {**given, "reduction": "none"}
    upstream = torch.randn(m)
    plain = run(catalog_cross_entropy, good, upstream)
    rows = {0: v, 2: 2, 4: -2, 6: 2**62, 8: -(2**62)}
    for row, value in rows.items():
        given["targets"][row, 1] = value
    # straight to the kernels: on the CPU the public function would refuse these ids
    on = {k: x.to(DEVICE) for k, x in given.items() if isinstance(x, Tensor)}
    problem = Problem(
        on["queries"], on["items"], on["targets"], on["weights"], on["item_bias"], 3, 0.7, "none"
    )
    loss, saved = triton_kernels.forward(problem, [True, True, True])
    bad = torch.tensor([row in rows for row in range(m)])
    assert loss.cpu()[bad].isnan().all()
    torch.testing.assert_close(loss.cpu()[~bad], plain[0][~bad])
    dq, de, db = triton_kernels.backward(upstream.to(DEVICE), problem, saved, [True, True, True])
    assert dq.isfinite().all() and de.isfinite().all() and db.isfinite().all()
    torch.testing.assert_close(dq.cpu()[~bad], plain[1][~bad])
    # the gradients are those of the slots that are in range
    given["targets"][:, 1] = torch.where(bad, -1, given["targets"][:, 1])
    exact = run(oracles.cross_entropy, {**given, "reduction": "none"}, upstream, "cpu",
                torch.float64)  # fmt: skip
    torch.testing.assert_close(de.cpu().double(), exact[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(db.cpu().double(), exact[3], rtol=1e-4, atol=1e-5)


def test_a_bias_of_minus_infinity_takes_an_item_out(tiny_tiles: None) -> None:
    given = call(9, 70, 6, 2, bias=True)
    out = torch.tensor([0, 5, 31, 32, 33, 69])
    given["item_bias"][out] = -torch.inf
    given["item_bias"][32:64] = -torch.inf  # a whole tile
    given["targets"][(given["item_bias"] == -torch.inf)[given["targets"]]] = 6
    given["targets"][0] = torch.tensor([5, 7])
    given["weights"][0] = torch.tensor([0.0, 1.0])  # an item taken out, without weight
    given["targets"][1] = torch.tensor([5, 7])
    given["weights"][1] = torch.tensor([0.5, 0.5])
    given["reduction"] = "none"
    upstream = torch.randn(9)
    upstream[1] = 0
    ours = run(catalog_cross_entropy, given, upstream)
    assert ours[0][1] == torch.inf
    with backend("reference"):
        plain = run(catalog_cross_entropy, given, upstream, "cpu")
    keep = torch.arange(9) != 1
    torch.testing.assert_close(ours[0][keep], plain[0][keep], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1][keep], plain[1][keep], rtol=1e-5, atol=1e-5)
    taken = given["item_bias"] == -torch.inf
    assert not ours[3][taken].any()


def test_a_nan_query_spoils_its_own_row_only(tiny_tiles: None) -> None:
    given = {**call(20, 70, 6), "reduction": "none"}
    given["queries"][3] = torch.nan
    loss, dq, *_ = run(catalog_cross_entropy, given, torch.ones(20))
    bad = torch.arange(20) == 3
    assert loss[bad].isnan().all() and loss[~bad].isfinite().all()
    assert dq[bad].isnan().all() and dq[~bad].isfinite().all()


@pytest.mark.parametrize("wanted", [("queries",), ("items",), ("item_bias",), NAMES[1:]])
def test_only_the_gradients_wanted_with_the_same_bits(
    tiny_tiles: None, wanted: tuple[str, ...]
) -> None:
    given = call(18, 75, 20, 2, bias=True, first=1)
    upstream = upstream_of(given)
    every = dict(zip(NAMES, run(catalog_cross_entropy, given, upstream)[1:], strict=True))
    some = run(catalog_cross_entropy, given, upstream, wanted=wanted)[1:]
    assert len(some) == len(wanted)
    assert all(torch.equal(g, every[name]) for g, name in zip(some, wanted, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_repeated_calls_and_second_backwards_give_the_same_bits(
    tiny_tiles: None, reduction: str
) -> None:
    given = {**call(40, 90, 20, 3, bias=True), "reduction": reduction}
    given["targets"][:, 0] = 7  # many rows add to one item
    upstream = upstream_of(given)
    one = run(catalog_cross_entropy, given, upstream)
    two = run(catalog_cross_entropy, given, upstream)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    given = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in given.items()}
    q, e = given["queries"].requires_grad_(), given["items"].requires_grad_()
    loss = catalog_cross_entropy(**given)
    first = torch.autograd.grad(loss, (q, e), upstream.to(DEVICE), retain_graph=True)
    kept = [g.clone() for g in first]
    first[1].fill_(torch.nan)
    second = torch.autograd.grad(loss, (q, e), upstream.to(DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(kept, second, strict=True))


def test_strided_expanded_and_sliced_inputs(tiny_tiles: None) -> None:
    m, v, d = 20, 70, 10
    cases = {
        "column slices": (torch.randn(m, 2 * d)[:, ::2], torch.randn(v, 2 * d)[:, 1::2]),
        "half of each row": (torch.randn(m, 2 * d)[:, :d], torch.randn(v, 2 * d)[:, d:]),
        "transposed": (torch.randn(d, m).T, torch.randn(d, v).T),
        "one row for all": (torch.randn(1, d).expand(m, d), torch.randn(1, d).expand(v, d)),
        "rows cut off": (torch.randn(m + 3, d)[3:], torch.randn(v + 3, d)[3:]),
    }
    targets = torch.randint(v, (2, m)).T
    bias = torch.randn(2 * v)[::2]
    upstream = torch.randn(())
    for what, (q, e) in cases.items():
        given = {"queries": q, "items": e, "targets": targets, "item_bias": bias}
        before = [t.clone() for t in given.values()]
        ours = run(catalog_cross_entropy, given, upstream)
        assert all(map(torch.equal, given.values(), before)), what
        packed = {name: t.contiguous() for name, t in given.items()}
        for a, b in zip(ours, run(catalog_cross_entropy, packed, upstream), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=what)


def test_rows_of_the_table_further_apart_than_32_bits_reach(tiny_tiles: None) -> None:
    # interpreted, the storage would be copied: there the rows only lie apart
    m, v, d, apart = 5, 6, 16, 2**12 if triton_device.INTERPRETED else 2**29
    storage = torch.zeros((v - 1) * apart + d, dtype=torch.float16, device=DEVICE)
    table = storage.as_strided((v, d), (apart, 1))
    table.copy_(torch.randn(v, d))
    queries = torch.randn(m, d, dtype=torch.float16, device=DEVICE)
    targets = torch.randint(v, (m,), device=DEVICE)
    losses, grads = [], []
    for items in (table, table.contiguous()):
        leaf = items.detach().requires_grad_()
        losses.append(catalog_cross_entropy(queries, leaf, targets))
        grads += torch.autograd.grad(losses[-1], leaf)
    assert torch.equal(*losses) and torch.equal(*grads)


def test_rows_without_a_target_and_batches_without_rows(tiny_tiles: None) -> None:
    given = call(20, 40, 6, 2)
    given["targets"][:] = -1
    loss, dq, de = run(catalog_cross_entropy, given, torch.ones(()))
    assert loss == 0 and not dq.any() and not de.any()
    for shape in ((0,), (0, 3), (5, 0)):
        for reduction in ("mean", "none"):
            rows = shape[0]
            empty = {
                "queries": torch.randn(rows, 6), "items": torch.randn(40, 6),
                "targets": torch.empty(shape, dtype=torch.int64), "reduction": reduction,
            }  # fmt: skip
            upstream = torch.ones(rows) if reduction == "none" else torch.ones(())
            loss, dq, de = run(catalog_cross_entropy, empty, upstream)
            assert loss.shape == upstream.shape and not loss.any()
            assert dq.shape == (rows, 6) and not dq.any() and not de.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_gives_the_bits_of_eager(tiny_tiles: None, reduction: str) -> None:
    given = {**call(18, 70, 8, 2, bias=True, first=1), "reduction": reduction}
    upstream = upstream_of(given)
    compiled = torch.compile(catalog_cross_entropy, fullgraph=True, backend="aot_eager")
    eager = run(catalog_cross_entropy, given, upstream)
    traced = run(compiled, given, upstream)
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


def test_opcheck(tiny_tiles: None) -> None:
    given = call(5, 40, 4, 2, bias=True, first=1)
    q, e, b = (given[name].to(DEVICE).requires_grad_() for name in NAMES)
    targets, weights = given["targets"].to(DEVICE), given["weights"].to(DEVICE)
    operator = torch.ops.seqrec_kernels.catalog_cross_entropy.default
    torch.library.opcheck(
        operator, (q, e, targets, weights, b, 1, 0.5, "mean", [True, True, True], "triton")
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_of_the_batch_times_the_catalogue(reduction: str) -> None:
    from seqrec_kernels.ops.catalog_cross_entropy import triton_kernels

    m, v, d = 100, 1000, 2
    problem = Problem(
        torch.randn(m, d, device=DEVICE), torch.randn(v, d, device=DEVICE),
        torch.randint(v, (m,), device=DEVICE), None, None, 0, 1.0, reduction,
    )  # fmt: skip
    with oracles.Watch() as watch, torch.no_grad():
        loss, saved = triton_kernels.forward(problem, [True, True, False])
        triton_kernels.backward(torch.ones_like(loss), problem, saved, [True, True, False])
    # the largest is a workspace of gradient parts, a few times the queries or the items
    assert watch.largest <= 4 * 16 * (m + v) * d < 4 * m * v / 2


def test_a_loss_follows_the_precision_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_kernels.ops.catalog_cross_entropy.triton_operands import Operands

    q = torch.randn(3, 4, device=DEVICE)
    problem = Problem(q, q, torch.zeros(3, dtype=torch.int64), None, None, 0, 1.0, "mean")
    before = torch.get_float32_matmul_precision()
    try:
        for asked, taken in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(asked)
            assert Operands.of(problem).precision == taken
    finally:
        torch.set_float32_matmul_precision(before)
