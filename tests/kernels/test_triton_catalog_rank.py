"""The triton kernels of catalog_rank against comparisons counted one by one."""

from __future__ import annotations

import random
from typing import Any

import oracles
import pytest
import torch
import triton_device
from ranking_calls import counts_every_comparison, random_seen, whole
from torch import Tensor
from triton_device import DEVICE

from seqrec_kernels import Rank, SeenItems, backend, catalog_rank

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton
tiny_tiles = triton_device.tiny_tiles


def ranked(queries: Tensor, items: Tensor, targets: Tensor, **options: Any) -> Rank:
    """The rank on the device, back on the CPU."""
    for name in ("item_bias", "seen"):
        if options.get(name) is not None:
            options[name] = options[name].to(DEVICE)
    found = catalog_rank(queries.to(DEVICE), items.to(DEVICE), targets.to(DEVICE), **options)
    return Rank(found.greater.cpu(), found.equal.cpu())


@pytest.mark.parametrize(("rule", "score"), [("free", None), ("out", None), ("scored", -1.0)])
@pytest.mark.parametrize(
    ("shape", "slots"), [((1, 1, 1), None), ((17, 63, 5), 1), ((40, 129, 50), 3), ((33, 300, 3), 2)]
)
def test_counts_every_comparison(
    tiny_tiles: None, shape: tuple[int, int, int], slots: int | None, rule: str, score: float | None
) -> None:
    random.seed(1)
    b, v, d = shape
    first = min(3, v - 1)
    q, e, bias = whole(b, d), whole(v, d), torch.randint(-1, 2, (v,)).float()
    y = torch.randint(first, v, (b,) if slots is None else (b, slots))
    y[torch.rand(y.shape) < 0.2] = -1
    lists = random_seen(b, v)
    for row, target in enumerate(y.view(b, -1)[:, 0].tolist()):
        if row % 3 == 0 and target >= 0:
            lists[row] += [target, target]  # a target the row has seen, twice
    seen = None if rule == "free" else SeenItems.from_lists(lists)
    ours = ranked(q, e, y, item_bias=bias, first_item=first, seen=seen, seen_score=score)
    met = None if seen is None else lists
    counts_every_comparison(ours, (q, e, bias), y, first, met, score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(70, 300, 50), (3, 257, 130)])
def test_counts_in_the_tiles_it_ships_with(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    random.seed(2)
    b, v, d = shape
    q, e, y = whole(b, d), whole(v, d), torch.randint(v, (b,))
    lists = random_seen(b, v)
    ours = ranked(q.to(dtype), e.to(dtype), y, seen=SeenItems.from_lists(lists))
    greater, equal = oracles.rank(
        (q @ e.T).tolist(), y[:, None].tolist(), 0, [set(row) for row in lists]
    )
    assert ours.greater[:, None].tolist() == greater and ours.equal[:, None].tolist() == equal


def test_nan_infinity_and_both_zeros(tiny_tiles: None) -> None:
    b, v = 20, 70
    scores = torch.randint(-3, 4, (v,)).float()
    scores[5], scores[6], scores[7], scores[8] = torch.nan, -torch.inf, torch.inf, -0.0
    scores[40] = torch.nan
    q, e = torch.ones(b, 1), torch.zeros(v, 1)
    q[3] = torch.nan
    y = torch.arange(5, 5 + b)
    ours = ranked(q, e, y, item_bias=scores, first_item=2)
    table = [[float("nan")] * v if row == 3 else scores.tolist() for row in range(b)]
    greater, equal = oracles.rank(table, y[:, None].tolist(), 2)
    assert ours.greater[:, None].tolist() == greater and ours.equal[:, None].tolist() == equal
    assert ours.greater[0] == v - 2 - 1 and ours.equal[0] == 0  # a target of NaN is last
    # a seen item is none of its candidates
    seen = SeenItems.from_lists([[9, 9, 40, 5, 0]] * b)
    ours = ranked(q, e, y, item_bias=scores, first_item=2, seen=seen)
    assert ours.greater[0] == v - 2 - 1 - 2 and ours.equal[0] == 0


def test_equal_rows_tie_wherever_they_stand() -> None:
    copies = torch.tensor([0, 1, 31, 63, 64, 100, 127, 128, 200, 256])
    q, e = torch.randn(9, 50), torch.randn(257, 50)
    e[copies] = torch.randn(50)
    q[:] = torch.randn(50)  # one query in every row: the rows must agree as well
    if triton_device.INTERPRETED:
        # numpy's products are not position independent, the chip's are: coarse numbers here
        q, e = (q * 4).round(), (e * 4).round()
    y = copies[:9]
    ours = ranked(q, e, y)
    assert (ours.equal >= len(copies) - 1).all()
    assert (ours.greater == ours.greater[0]).all() and (ours.equal == ours.equal[0]).all()


def test_ids_out_of_range_are_not_followed() -> None:
    from seqrec_kernels.ops.catalog_rank import triton_kernels

    q, e, v = whole(7, 5), whole(70, 5), 70
    y = torch.tensor([[3, v], [2, 4], [-2, 5], [6, 2**62], [7, -(2**62)], [8, 9], [1, -1]])
    # straight to the kernels: on the CPU the public function would refuse these ids
    on = [t.to(DEVICE) for t in (q, e, y)]
    greater, equal = triton_kernels.forward(*on, None, 2, None, None)
    bad = (y < 2) | (y >= v)
    fine = ranked(q, e, torch.where(bad, -1, y), first_item=2)
    assert (greater.cpu()[bad] == -1).all() and (equal.cpu()[bad] == -1).all()
    assert torch.equal(greater.cpu(), fine.greater) and torch.equal(equal.cpu(), fine.equal)

    # a CSR that leaves itself, or names no item: its rows are -1, the others stand
    y = torch.arange(2, 9)
    offsets = torch.tensor([0, 2, 4, 3, 2**40, 2**40 + 1, 6, 7])
    ids = torch.tensor([3, 4, 5, 2**40, 6, 7, 8])
    users = torch.tensor([0, 1, 2, 3, -1, 99, 5])
    seen = SeenItems(offsets, ids, users).to(DEVICE)
    on[2] = y.to(DEVICE)
    greater, _ = triton_kernels.forward(*on, None, 2, seen, None)
    good = ranked(q[:1], e, y[:1], first_item=2, seen=SeenItems.from_lists([[3, 4]]))
    assert greater.tolist()[1:6] == [-1] * 5
    assert greater[0].item() == good.greater[0] and greater[6].item() == -1


def test_one_csr_serves_any_batch_in_any_pieces(
    tiny_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrec_kernels.ops import triton_seen

    random.seed(3)
    q, e, y = whole(70, 4), whole(90, 4), torch.randint(90, (70, 2))
    lists = random_seen(12, 90)
    users = torch.randint(12, (70,))
    seen = SeenItems.from_lists(lists)._replace(rows=users)
    whole_batch = ranked(q, e, y, seen=seen)
    monkeypatch.setattr(triton_seen, "WORKSPACE", 100)  # 64 rows at a time
    pieces = ranked(q, e, y, seen=seen)
    spelled = ranked(q, e, y, seen=SeenItems.from_lists([lists[u] for u in users.tolist()]))
    for other in (pieces, spelled):
        assert all(map(torch.equal, whole_batch, other))
    oracle = oracles.rank(
        (q @ e.T).tolist(), y.tolist(), 0, [set(lists[u]) for u in users.tolist()]
    )
    assert (whole_batch.greater.tolist(), whole_batch.equal.tolist()) == oracle


def test_strided_and_empty_arguments(tiny_tiles: None) -> None:
    q, e = whole(40, 12), whole(80, 12)
    y = torch.randint(80, (2, 20)).T
    ours = ranked(q[::2, ::2], e[:, 1::2], y)
    plain = ranked(q[::2, ::2].contiguous(), e[:, 1::2].contiguous(), y.contiguous())
    assert all(map(torch.equal, ours, plain))
    for shape in ((0,), (0, 3), (20, 0)):
        none = ranked(q[: shape[0]], e, torch.empty(shape, dtype=torch.int64))
        assert none.greater.shape == none.equal.shape == shape
        assert none.greater.dtype == torch.int64


def test_through_the_dispatcher_and_again(tiny_tiles: None) -> None:
    q, e, y = torch.randn(20, 7), torch.randn(70, 7), torch.randint(70, (20, 2))
    seen = SeenItems.from_lists([[1, 2, 3]] * 20)
    eager = ranked(q, e, y, seen=seen)
    assert all(map(torch.equal, eager, ranked(q, e, y, seen=seen)))
    with backend("reference"):
        plain = catalog_rank(q, e, y, seen=seen)
    assert all(map(torch.equal, eager, plain))
    operator = torch.ops.seqrec_kernels.catalog_rank.default
    on = [t.to(DEVICE) for t in (q, e, y)]
    parts = [None if t is None else t.to(DEVICE) for t in seen]
    torch.library.opcheck(operator, (*on, None, 0, *parts, None, "triton"))


def test_no_tensor_of_the_batch_times_the_catalogue() -> None:
    from seqrec_kernels.ops.catalog_rank import triton_kernels

    b, v, d = 100, 1000, 2
    q, e = torch.randn(b, d, device=DEVICE), torch.randn(v, d, device=DEVICE)
    seen = SeenItems.from_lists([[1, 2]] * b).to(DEVICE)
    with oracles.Watch() as watch:
        triton_kernels.forward(q, e, torch.zeros(b, dtype=torch.int64, device=DEVICE), None, 0,
                               seen, None)  # fmt: skip
    assert watch.largest <= 4 * b * v / 16
