"""The triton kernels of catalog_topk against sorted lists."""

from __future__ import annotations

import random
from typing import Any

import oracles
import pytest
import torch
import triton_device
from ranking_calls import random_seen, whole
from torch import Tensor
from triton_device import DEVICE

from seqrec_kernels import SeenItems, TopK, backend, catalog_topk

pytestmark = triton_device.MARKS
on_triton = triton_device.on_triton
tiny_tiles = triton_device.tiny_tiles


def best(queries: Tensor, items: Tensor, k: int, **options: Any) -> TopK:
    """The best items on the device, back on the CPU."""
    for name in ("item_bias", "seen"):
        if options.get(name) is not None:
            options[name] = options[name].to(DEVICE)
    found = catalog_topk(queries.to(DEVICE), items.to(DEVICE), k, **options)
    return TopK(found.scores.cpu(), found.ids.cpu())


def is_exact(ours: TopK, scores: Tensor, k: int, first: int, seen: list[set[int]] | None) -> None:
    wanted = oracles.topk(scores.tolist(), k, first, seen)
    assert ours.ids.dtype == torch.int64 and ours.scores.dtype == torch.float32
    assert ours.ids.tolist() == wanted
    at = scores.double().gather(1, ours.ids.clamp(min=0))
    at = torch.where(ours.ids < 0, -torch.inf, at)
    assert torch.equal(ours.scores.double(), at)


@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 63, 5), (33, 300, 3), (5, 129, 50)])
def test_the_k_best_with_ties_by_lowest_id(
    tiny_tiles: None, shape: tuple[int, int, int], k: int, with_seen: bool
) -> None:
    random.seed(1)
    b, v, d = shape
    first = min(3, v - 1)
    q, e, bias = whole(b, d), whole(v, d), torch.randint(-1, 2, (v,)).float()
    lists = random_seen(b, v)
    seen = SeenItems.from_lists(lists) if with_seen else None
    ours = best(q, e, k, item_bias=bias, first_item=first, seen=seen)
    met = [set(row) for row in lists] if with_seen else None
    is_exact(ours, q @ e.T + bias, k, first, met)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_the_tiles_it_ships_with(dtype: torch.dtype) -> None:
    q, e = whole(70, 50), whole(300, 50)
    is_exact(best(q.to(dtype), e.to(dtype), 7), q @ e.T, 7, 0, None)


def test_more_than_there_are(tiny_tiles: None) -> None:
    q, e = whole(5, 4), whole(70, 4)
    lists = [[], [0] * 5, list(range(70)), list(range(35)), [69, 3]]
    for k in (69, 70, 200):
        ours = best(q, e, k, seen=SeenItems.from_lists(lists))
        is_exact(ours, q @ e.T, k, 0, [set(row) for row in lists])
    assert (ours.ids[2] == -1).all() and (ours.scores[2] == -torch.inf).all()


def test_every_score_alike_gives_the_lowest_ids(tiny_tiles: None) -> None:
    q, e = torch.zeros(3, 4), torch.zeros(200, 4)
    bias = torch.zeros(200)
    bias[::3] = -0.0  # one score with 0.0
    for k in (1, 5, 33, 100):
        ours = best(q, e, k, item_bias=bias, first_item=1, seen=SeenItems.from_lists([[2, 5]] * 3))
        ids = [v for v in range(1, 200) if v not in (2, 5)][:k]
        assert ours.ids.tolist() == [ids] * 3


def test_nan_and_minus_infinity_never_win_and_infinity_does(tiny_tiles: None) -> None:
    v = 70
    scores = torch.randint(-3, 4, (v,)).float()
    scores[5], scores[6], scores[7], scores[40] = torch.nan, -torch.inf, torch.inf, torch.nan
    q = torch.ones(20, 1)
    q[3] = torch.nan
    ours = best(q, torch.zeros(v, 1), v, item_bias=scores)
    table = scores.expand(20, v).clone()
    table[3] = torch.nan
    assert ours.ids.tolist() == oracles.topk(table.tolist(), v)
    assert ours.ids[0, 0] == 7 and (ours.ids[3] == -1).all()


def test_a_csr_gone_wrong_empties_its_rows() -> None:
    from seqrec_kernels.ops.catalog_topk import triton_kernels

    q, e = whole(5, 5), whole(70, 5)
    offsets, ids = torch.tensor([0, 2, 4, 3, 2**40]), torch.tensor([3, 4, 5, -7, 6])
    users = torch.tensor([0, 1, 2, 3, -1])
    seen = SeenItems(offsets, ids, users).to(DEVICE)
    # straight to the kernels: on the CPU the public function would refuse these ids
    scores, found = triton_kernels.forward(q.to(DEVICE), e.to(DEVICE), 3, None, 0, seen)
    good = best(q[:1], e, 3, seen=SeenItems.from_lists([[3, 4]]))
    assert torch.equal(found.cpu()[:1], good.ids)
    assert (found[1:] == -1).all() and (scores[1:] == -torch.inf).all()


def test_one_csr_serves_any_batch_in_any_pieces(
    tiny_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrec_kernels.ops import triton_seen

    random.seed(3)
    q, e, lists = whole(70, 4), whole(90, 4), random_seen(12, 90)
    users = torch.randint(12, (70,))
    seen = SeenItems.from_lists(lists)._replace(rows=users)
    whole_batch = best(q, e, 5, seen=seen)
    is_exact(whole_batch, q @ e.T, 5, 0, [set(lists[u]) for u in users.tolist()])
    monkeypatch.setattr(triton_seen, "WORKSPACE", 100)  # 64 rows at a time
    assert all(map(torch.equal, whole_batch, best(q, e, 5, seen=seen)))


def test_strided_and_empty_arguments(tiny_tiles: None) -> None:
    q, e = whole(40, 12), whole(80, 12)
    ours = best(q[::2, ::2], e[:, 1::2], 4)
    assert all(map(torch.equal, ours, best(q[::2, ::2].contiguous(), e[:, 1::2].contiguous(), 4)))
    none = best(q[:0], e, 4)
    assert none.ids.shape == none.scores.shape == (0, 4)


def test_through_the_dispatcher_and_again(tiny_tiles: None) -> None:
    q, e = torch.randn(20, 7), torch.randn(70, 7)
    seen = SeenItems.from_lists([[1, 2, 3]] * 20)
    eager = best(q, e, 5, seen=seen)
    assert all(map(torch.equal, eager, best(q, e, 5, seen=seen)))
    with backend("reference"):
        assert torch.equal(eager.ids, catalog_topk(q, e, 5, seen=seen).ids)
    operator = torch.ops.seqrec_kernels.catalog_topk.default
    parts = [None if t is None else t.to(DEVICE) for t in seen]
    torch.library.opcheck(operator, (q.to(DEVICE), e.to(DEVICE), 5, None, 0, *parts, "triton"))


def test_workspace_is_a_fraction_of_the_score_matrix() -> None:
    from seqrec_kernels.ops.catalog_topk import triton_kernels

    b, v = 70, 2000
    q, e = torch.randn(b, 2, device=DEVICE), torch.randn(v, 2, device=DEVICE)
    with oracles.Watch() as watch:
        triton_kernels.forward(q, e, 2, None, 0, None)
    assert watch.largest <= 4 * b * v / 12
