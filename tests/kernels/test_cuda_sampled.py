"""The sampled losses in CUDA: on a GPU as they are, without one the same programs on the CPU.

``csrc/common/sampled_rows.h`` and ``ordered_sums.h`` are what blocks and warps do; the CPU library
runs them one lane after the other, in changing orders. What every compiled implementation keeps to
is in ``test_native_sampled.py``, whose tests run here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import oracles
import pytest
import torch
from gpu_programs import CUDA, REASON, sanitized
from sampled_calls import LOSSES, REDUCTIONS, Call, call, exact, gradients, upstream_of
from test_native_sampled import (  # noqa: F401 (run here as well)
    EVERY,
    LEADING,
    SHARED,
    test_a_gradient_does_not_depend_on_which_others_are_wanted,
    test_a_query_that_is_nan_spoils_no_other_row,
    test_a_wrong_id_makes_its_row_nan_and_touches_nothing,
    test_agrees_with_float64,
    test_agrees_with_float64_on_odd_shapes,
    test_compiled_gives_the_bits_of_eager,
    test_empty_sides,
    test_extreme_logits_stay_finite,
    test_narrow_inputs_are_summed_in_float32_and_rounded_once,
    test_rows_that_do_not_count_may_hold_nan,
    test_softplus_and_its_slope_are_exact_to_rounding,
    test_the_graph_may_be_walked_twice_and_never_differentiated,
)
from torch import Tensor

from seqrec_kernels import backend, native, sampled_softmax_loss
from seqrec_kernels.ops.sampled import cuda, passes
from seqrec_kernels.ops.sampled import native as compiled
from seqrec_kernels.ops.sampled.problem import Problem

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=str(native.MISSING))
PART, TILE = cuda.PART, cuda.TILE


@pytest.fixture(params=["cpu", CUDA], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Has the compiled losses run the GPU's programs, on the device where tensors are made."""
    monkeypatch.setattr(compiled, "forward", partial(passes.forward, cuda.run))
    monkeypatch.setattr(compiled, "backward", partial(passes.backward, cuda.run))
    monkeypatch.setattr(passes, "_one_pass", lambda problem, needs: False)
    with torch.device(request.param), backend("native"):
        yield request.param


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows each."""
    monkeypatch.setattr(cuda, "WORKSPACE", 4000)


def agrees(loss: str, made: Call) -> None:
    upstream = upstream_of(made)
    right = exact(LOSSES[loss], made, upstream)
    with backend("reference"):
        plain = gradients(LOSSES[loss], made, upstream)
    for our, true, dense in zip(gradients(LOSSES[loss], made, upstream), right, plain, strict=True):
        oracles.close(our, true, dense, loss)


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 7, 10, 16, 36, 64, 66, 130, 132, 260])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_every_way_that_lanes_stand_before_rows(width: int, count: int) -> None:
    """Rows of 4 to 32 lanes, loads of 4, 8 and 16 bytes, rows wider than a warp."""
    agrees("corrected", call(9, count, 40, width, drop_hits=True, size=3.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 30, 64, 264])
@SHARED
def test_every_load_of_narrow_rows(width: int, shared: bool, dtype: torch.dtype) -> None:
    made = call(9, 33, 40, width, shared=shared)
    made = made._replace(queries=made.queries.to(dtype), items=made.items.to(dtype))
    upstream = upstream_of(made)
    right = exact(LOSSES["softmax"], made, upstream)
    for our, true in zip(gradients(LOSSES["softmax"], made, upstream), right, strict=True):
        unit = torch.finfo(our.dtype).eps / 2 * 1.01
        assert ((our.double() - true).abs() <= unit * true.abs() + 5e-6).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@SHARED
@EVERY
def test_in_blocks_of_rows(tiny: None, loss: str, shared: bool, reduction: str) -> None:
    agrees(loss, call(70, 9, 40, 6, shared=shared, drop_hits=True, reduction=reduction))


@SHARED
@LEADING
def test_again_the_same_bits_and_rows_do_not_see_each_other(
    loss: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, made = LOSSES[loss], call(300, 20, 30, 12, shared=shared, reduction="none")
    upstream = upstream_of(made)
    ours = gradients(kind, made, upstream)
    again = gradients(kind, made, upstream)
    assert all(map(torch.equal, ours, again))
    if not shared:  # where products are torch's, their bits may depend on their size
        monkeypatch.setattr(cuda, "WORKSPACE", 1)
        alone = gradients(kind, made, upstream)
        assert all(map(torch.equal, ours[:2], alone[:2]))


@SHARED
def test_strided_expanded_and_unaligned_inputs_none_written(shared: bool) -> None:
    """Alignment chooses the loads, and so the order of a product's sums: bits may differ."""
    ids = torch.randint(-1, 90, (40, 14))
    tables = {
        "columns": (torch.randn(40, 32)[:, ::2], torch.randn(16, 90).T),
        "expanded": (torch.randn(1, 16).expand(40, 16), torch.randn(1, 16).expand(90, 16)),
        "single": (torch.randn(40, 1).expand(40, 16), torch.randn(90, 1).expand(90, 16)),
        "unaligned": (torch.randn(41, 16).view(-1)[7:647].view(40, 16), torch.randn(91, 16)[1:]),
        "overlapping": (torch.randn(55).as_strided((40, 16), (1, 1)), torch.randn(90, 16)),
    }
    for name, (q, e) in tables.items():
        log_q = torch.randn(180)[::2]
        p, n = ids[:, 0], ids[:, 3] if shared else ids[:, 1::2]
        copies = [t.clone() for t in (q, e, log_q, ids)]
        found = []
        for a, b, c, *these in (
            (q, e, log_q, p, n),
            [t.contiguous() for t in (q, e, log_q, p, n)],
        ):
            a, b, c = (t.detach().requires_grad_() for t in (a, b, c))
            value = sampled_softmax_loss(a, b, *these, log_q=c)
            found.append([value, *torch.autograd.grad(value, (a, b, c))])
        assert all(map(torch.equal, (q, e, log_q, ids), copies)), name
        for ours, dense in zip(*found, strict=True):
            torch.testing.assert_close(ours, dense, rtol=2e-5, atol=1e-6, msg=name)


@SHARED
def test_items_beyond_2_31(shared: bool) -> None:
    # address space on the CPU, of which a few pages are ever touched; 8 GiB on a GPU
    stride = 2**30 + 4
    far = torch.empty(2 * stride + 16).as_strided((3, 16), (stride, 1))
    near = torch.randn(3, 16)
    far.copy_(near)
    q, ids = torch.randn(20, 16), torch.randint(3, (20, 4))
    found = []
    for items in (far, near):
        items.requires_grad_()
        value = sampled_softmax_loss(q, items, ids[:, 0], ids[0] if shared else ids)
        found.append([value, *torch.autograd.grad(value, items)])
    assert all(map(torch.equal, *found))


@SHARED
def test_memory_is_the_workspace_and_the_gradients(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, count, items, width = 700, 40, 500, 8
    made = call(rows, count, items, width, shared=shared)
    problem = Problem(*made[:5], "softmax", 0.7, 1.0, True, "mean")
    monkeypatch.setattr(cuda, "WORKSPACE", 2**16)
    with oracles.Watch() as watch:
        cuda.run(problem, torch.ones(rows), [True] * 3)
    assert "seqrec_native.sampled_rows.default" in watch.names
    given = max(8 * made.negatives.numel(), 4 * rows * width)
    assert watch.largest <= max(2**16, given) < 4 * rows * count * width


# ---- sums in order -------------------------------------------------------------------------------


def sort(keys: Tensor, most: int) -> tuple[Tensor, Tensor]:
    slots, rounds = len(keys), -(-most.bit_length() // 8)
    pairs = torch.full((2, slots), -1, dtype=torch.int32)
    places = torch.full_like(pairs, -1)
    pairs[0] = keys
    counts = torch.full((256 * (-(-slots // PART) + 1),), -1, dtype=torch.int32)
    torch.ops.seqrec_native.sort_slots(pairs, places, counts, rounds)
    return pairs[rounds % 2], places[rounds % 2]


@pytest.mark.parametrize("most", [1, 255, 256, 12_101, 70_000, 2**24, 2**31 - 1])
@pytest.mark.parametrize("slots", [0, 1, 255, PART - 1, PART, PART + 1, 3 * PART + 77])
def test_slots_are_sorted_by_key_and_place(slots: int, most: int) -> None:
    for keys in (
        torch.randint(most + 1, (slots,)),
        torch.randint(min(3, most + 1), (slots,)),
        torch.full((slots,), most),
        (most - torch.arange(slots)).clamp(min=0),
    ):
        found, places = sort(keys, most)
        wanted, order = keys.sort(stable=True)
        assert torch.equal(found.long(), wanted) and torch.equal(places.long(), order)


def test_more_parts_than_a_block_has_threads() -> None:
    keys = torch.randint(300, (257 * PART + 5,))
    found, places = sort(keys, 300)
    assert torch.equal(places.long(), keys.sort(stable=True)[1])
    assert torch.equal(found.long(), keys.sort()[0])


@pytest.mark.parametrize("width", [1, 5, 8, 30, 132])
@pytest.mark.parametrize("slots", [1, TILE - 1, TILE, TILE + 1, 7 * TILE + 3])
def test_runs_are_added_to_their_rows(slots: int, width: int) -> None:
    """Whole numbers: every order of the sums is exact."""
    v, per_row = 9, 3
    kinds = [
        torch.randint(v + 1, (slots,)),  # some of them empty
        torch.zeros(slots, dtype=torch.int64),  # one run over all tiles
        torch.full((slots,), v),  # nothing but empty ones
        torch.arange(slots) // TILE % v,  # runs that are tiles
        (torch.arange(slots) + 1) // (TILE + 1) % v,
        (torch.arange(slots) > slots // 2).long() * (v - 1),
    ]
    for keys in kinds:
        sorted_keys, places = sort(keys, v)
        weights = torch.randint(-3, 4, (slots,)).float()
        rows = torch.randint(-3, 4, (-(-slots // per_row), width)).float()
        before = torch.randint(-3, 4, (v + 1, width)).float()
        ours = before[:v].clone()
        heads = torch.full((-(-slots // TILE), width), torch.nan)
        add = torch.ops.seqrec_native.add_sorted
        add(sorted_keys, places, weights, rows, per_row, -2.0, heads, ours)
        shares = weights[:, None] * rows[torch.arange(slots) // per_row]
        assert torch.equal(ours, before.index_add(0, keys, shares, alpha=-2)[:v])

        ones = before[:v, :1].clone()
        heads = torch.full((-(-slots // TILE), 1), torch.nan)
        add(sorted_keys, places, None, None, 1, 1.0, heads, ones)
        counts = keys.bincount(minlength=v + 1)[:v, None]
        assert torch.equal(ones, before[:v, :1] + counts)


@pytest.mark.slow
def test_no_barrier_is_missing() -> None:
    sanitized("sampled_threads.cpp")


# ---- where it stands -----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@SHARED
def test_on_a_gpu_it_is_native_and_a_graph_can_be_replayed(shared: bool) -> None:
    made = call(50, 9, 40, 16, shared=shared)
    assert native.cuda_unsupported(made.queries, made.items) is None
    problem = Problem(*made[:5], "softmax", 0.7, 1.0, True, "mean")
    upstream = torch.randn(50)
    cuda.run(problem, upstream, [True] * 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = cuda.run(problem, upstream, [True] * 3)
    made.negatives.copy_(torch.randint(-1, 40, made.negatives.shape))
    graph.replay()
    eager = cuda.run(problem, upstream, [True] * 3)
    assert torch.equal(found.losses, eager.losses)
    assert all(map(torch.equal, found.gradients, eager.gradients))
