"""The CUDA selection of the best k: on a GPU as it is, without one the same program on the CPU.

``csrc/common/select.h`` is what a thread block does. The CPU library runs it with one thread in the
place of all, shared memory full of noise and the threads of each phase in another order. Here it is
also run by as many threads as a block has, under gcc's thread sanitizer, which sees every barrier
that is missing.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import oracles
import pytest
import torch
from gpu_programs import CUDA, REASON, sanitized
from ranking_calls import random_seen, whole
from torch import Tensor

from seqrec_kernels import SeenItems, TopK, backend, catalog_topk, native
from seqrec_kernels.ops.catalog_topk import selection

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=str(native.MISSING))

THREADS, ROOM = 256, 1024  # of a block, and keys that it sorts in shared memory
LIMITS = (1, 2, THREADS - 1, THREADS, THREADS + 1, ROOM - 1, ROOM, ROOM + 1)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[32, 1000])
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and tiles so small that little tables run through many, ragged ones included."""
    monkeypatch.setattr(selection, "PART", request.param)
    monkeypatch.setattr(selection, "WIDTH", 64 if request.param == 32 else 2000)
    monkeypatch.setattr(selection, "ROWS", 16)


def best(device: str, queries: Tensor, items: Tensor, k: int, **options: Any) -> TopK:
    """The selection on ``device``, back on the CPU."""
    bias, seen = options.get("item_bias"), options.get("seen")
    bias, seen = (None if x is None else x.to(device) for x in (bias, seen))
    first = options.get("first_item", 0)
    found = selection.forward(queries.to(device), items.to(device), k, bias, first, seen)
    return TopK(*(t.cpu() for t in found))


def is_exact(ours: TopK, scores: Tensor, k: int, first: int, seen: list[set[int]] | None) -> None:
    assert ours.ids.dtype == torch.int64 and ours.scores.dtype == torch.float32
    assert ours.ids.tolist() == oracles.topk(scores.tolist(), k, first, seen)
    at = scores.gather(1, ours.ids.clamp(min=0))
    assert torch.equal(ours.scores, torch.where(ours.ids < 0, -torch.inf, at))


# ---- keys: the program itself --------------------------------------------------------------------


def key(score: float, item: int) -> int:
    """The contract of a key, in whole numbers: its order is (score descending, item ascending)."""
    (bits,) = struct.unpack("<I", struct.pack("<f", score + 0.0))
    ordered = bits ^ 0xFFFFFFFF if bits >> 31 else bits | 1 << 31
    return ordered << 32 | (0xFFFFFFFF - item)


def select_keys(device: str, rows: Sequence[Sequence[int]], k: int) -> list[list[int]]:
    """Items of the k largest of each row of keys; a key is an unsigned number of 64 bits."""
    signed = [[x - (1 << 64) if x >> 63 else x for x in row] for row in rows]
    width = len(rows[0]) if rows else 9
    keys = torch.tensor(signed, dtype=torch.int64, device=device).view(len(rows), width)
    scores = torch.full((len(rows), k), torch.nan, device=device)
    ids = torch.full((len(rows), k), -7, device=device)
    torch.ops.seqrec_native.select_keys(keys, 0, scores, ids)
    found = []
    for some, them in zip(scores.tolist(), ids.tolist(), strict=True):
        pairs = list(zip(some, them, strict=True))
        held = [pair for pair in pairs if pair[1] != -1]
        assert pairs == held + [(-torch.inf, -1)] * (k - len(held))
        found.append([key(*pair) for pair in held])
    return found


def largest(row: Sequence[int], k: int) -> list[int]:
    return sorted((x for x in row if x), reverse=True)[:k]


def spread(n: int) -> list[int]:
    """Scores in no order, one in ten no candidate."""
    scores = torch.randn(n).tolist()
    return [0 if random.random() < 0.1 else key(s, i) for i, s in enumerate(scores)]


def alike(n: int) -> list[int]:
    """One score: only the ids differ."""
    return [key(1.5, i) for i in random.sample(range(2**32), n)]


def close(n: int) -> list[int]:
    """Scores that differ in their last bits, with ties."""
    bits = torch.randint(0x3F800000, 0x3F800000 + max(2, n // 3), (n,), dtype=torch.int32)
    return [key(s, i) for i, s in enumerate(bits.view(torch.float32).tolist())]


def rising(n: int) -> list[int]:
    return [key(i / 7 - 100, i) for i in range(n)]


def some_threads(n: int) -> list[int]:
    """All that is large belongs to some threads, and most of it hides behind their first keys."""
    return [key(float(i + (10**5 if i % THREADS < 200 else 0)), i) for i in range(n)]


@pytest.mark.parametrize("make", [spread, alike, close, rising, some_threads])
@pytest.mark.parametrize("n", [1, 7, THREADS, THREADS + 1, ROOM, ROOM + 1, 9001])
def test_the_largest_keys_in_order(device: str, n: int, make: Any) -> None:
    random.seed(n)
    for k in {*LIMITS, 20, n, n + 3}:
        rows = [make(n) for _ in range(2)]
        assert select_keys(device, rows, k) == [largest(row, k) for row in rows], k


def test_rows_without_a_key(device: str) -> None:
    for n in (1, 300, 5000):
        rows = [[0] * n, [0] * (n - 1) + [key(-3.0, 5)]]
        for k in (1, 20, 300, 2000):
            assert select_keys(device, rows, k) == [[], [key(-3.0, 5)]]
    assert select_keys(device, [[]], 3) == [[]]
    assert select_keys(device, [], 3) == []


def test_no_more_than_k_places_are_written_even_where_keys_are_alike(device: str) -> None:
    """Keys differ by contract; a caller who breaks it gets too few, not a broken neighbour."""
    rows = [[key(1.0, 3)] * 3000, [key(2.0, 1)] * 3000]
    for k in (20, 300, 1500):
        assert select_keys(device, rows, k) == [[row[0]] * k for row in rows]


def test_k_is_checked_before_anything_is_written(device: str) -> None:
    keys, ids = torch.zeros(1, 4, dtype=torch.int64, device=device), torch.zeros(1, 0).long()
    with pytest.raises(RuntimeError):
        torch.ops.seqrec_native.select_keys(keys, 0, ids.float().to(device), ids.to(device))


@pytest.mark.slow
def test_no_barrier_is_missing() -> None:
    sanitized("select_threads.cpp")


# ---- scores: what is a candidate -----------------------------------------------------------------


def test_what_is_no_number_never_wins_and_zeros_are_one(tiny: None, device: str) -> None:
    v = 2500
    scores = torch.randint(-3, 4, (v,)).float()
    scores[::7] *= -0.0
    for place, value in ((5, torch.nan), (6, -torch.inf), (7, torch.inf), (40, -torch.nan)):
        scores[place] = value
    q = torch.ones(20, 1)
    q[3] = torch.nan
    table = scores.expand(20, v).clone()
    table[3] = torch.nan
    for k in (1, 30, v):
        ours = best(device, q, torch.zeros(v, 1), k, item_bias=scores)
        assert ours.ids.tolist() == oracles.topk(table.tolist(), k)
        assert ours.ids[0, 0] == 7 and (ours.ids[3] == -1).all()


@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 63, 5), (33, 300, 3), (5, 2600, 4)])
def test_the_k_best_with_ties_by_lowest_id(
    tiny: None, device: str, shape: tuple[int, int, int], with_seen: bool
) -> None:
    random.seed(1)
    b, v, d = shape
    first = min(3, v - 1)
    q, e, bias = whole(b, d), whole(v, d), torch.randint(-1, 2, (v,)).float()
    lists = random_seen(b, v)
    seen = SeenItems.from_lists(lists) if with_seen else None
    met = [set(row) for row in lists] if with_seen else None
    for k in (1, 20, v, v + 5):
        ours = best(device, q, e, k, item_bias=bias, first_item=first, seen=seen)
        is_exact(ours, q @ e.T + bias, k, first, met)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_the_sizes_it_ships_with(device: str, dtype: torch.dtype) -> None:
    v = selection.PART + 77
    q, e = whole(20, 9), whole(v, 9)
    e[:-50] -= 1  # what is best stands at the end
    is_exact(best(device, q.to(dtype), e.to(dtype), 30), q @ e.T, 30, 0, None)


def test_a_csr_gone_wrong_empties_its_rows(tiny: None, device: str) -> None:
    q, e = whole(6, 5), whole(70, 5)
    offsets, ids = torch.tensor([0, 2, 4, 3, 2**40, 5]), torch.tensor([3, 4, 5, -7, 6])
    seen = SeenItems(offsets, ids, torch.tensor([0, 1, 2, 3, -1, 5]))
    ours = best(device, q, e, 3, seen=seen)
    is_exact(TopK(*(t[:1] for t in ours)), q[:1] @ e.T, 3, 0, [{3, 4}])
    assert (ours.ids[1:] == -1).all() and (ours.scores[1:] == -torch.inf).all()
    outside = SeenItems(torch.tensor([0, 1, 2]), torch.tensor([70, 69]))
    ours = best(device, q[:2], e, 3, seen=outside)
    assert (ours.ids[0] == -1).all()
    is_exact(TopK(*(t[1:] for t in ours)), q[1:2] @ e.T, 3, 0, [{69}])


def test_one_csr_serves_any_batch_in_any_pieces(
    tiny: None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(3)
    q, e, lists = whole(70, 4), whole(90, 4), random_seen(12, 90)
    users = torch.randint(12, (70,))
    seen = SeenItems.from_lists(lists)._replace(rows=users)
    for workspace in (selection.WORKSPACE, 1):
        monkeypatch.setattr(selection, "WORKSPACE", workspace)
        ours = best(device, q, e, 5, seen=seen)
        is_exact(ours, q @ e.T, 5, 0, [set(lists[u]) for u in users.tolist()])
    own = SeenItems.from_lists(lists[u] for u in users.tolist())
    assert all(map(torch.equal, ours, best(device, q, e, 5, seen=own)))


def test_strided_and_empty_arguments(tiny: None, device: str) -> None:
    q, e, bias = whole(40, 12), whole(80, 12), torch.randn(1).expand(80)
    ours = best(device, q[::2, ::2], e[:, 1::2], 4, item_bias=bias)
    dense = q[::2, ::2].contiguous(), e[:, 1::2].contiguous()
    assert all(map(torch.equal, ours, best(device, *dense, 4, item_bias=bias.contiguous())))
    none = best(device, q[:0], e, 4)
    assert none.ids.shape == none.scores.shape == (0, 4)
    level = best(device, q[:, :0], e[:, :0], 4)
    assert level.ids.tolist() == [[0, 1, 2, 3]] * 40


@pytest.mark.parametrize("d", [1, 50, 65])
def test_equal_rows_score_equal_bits_wherever_they_stand(device: str, d: int) -> None:
    v = selection.WIDTH + 111  # the second tile has another width
    q, e = torch.randn(3, d), torch.randn(v, d)
    copies = torch.randperm(v)[:40]
    e[copies] = 9 * q[0]
    ours = best(device, q, e, 40)
    assert ours.ids[0].tolist() == sorted(copies.tolist())
    assert (ours.scores[0] == ours.scores[0, 0]).all()


def test_again_the_same_bits(device: str) -> None:
    q, e = torch.randn(20, 7), torch.randn(3000, 7)
    for k in (20, 2000):
        ours = best(device, q, e, k)
        assert all(map(torch.equal, ours, best(device, q, e, k)))


def test_places_beyond_2_31(device: str) -> None:
    # address space on the CPU, of which a few pages are ever touched; 4 GiB on a GPU
    stride, width = 2**30 + 1, 50
    storage = torch.empty(2 * stride + width, device=device)
    scores = storage.as_strided((3, width), (stride, 1))
    table = torch.randn(3, width)
    scores.copy_(table)
    first = 2**32 - 1 - width  # numbers go up to 2^32 - 1
    keys = torch.zeros(3, 4 * 20, dtype=torch.int64, device=device)
    nothing = (None, None, None)
    torch.ops.seqrec_native.select_scores(
        scores, None, first, 16, 20, 0, first + width, *nothing, keys
    )
    best = torch.empty(3, 20, device=device)
    ids = torch.empty(3, 20, dtype=torch.int64, device=device)
    torch.ops.seqrec_native.select_keys(keys, 2**33, best, ids)
    wanted = table.topk(20)
    assert torch.equal(best.cpu(), wanted.values)
    assert torch.equal(ids.cpu(), wanted.indices + first + 2**33)


def test_memory_is_a_tile_and_some_keys(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "WIDTH", 8192)
    b, v = 70, 60_000
    q, e = torch.randn(b, 2, device=device), torch.randn(v, 2, device=device)
    with oracles.Watch() as watch:
        selection.forward(q, e, 20, None, 0, None)
    assert watch.largest <= 4 * 80 * 8192 < 4 * b * v / 6


# ---- where it stands -----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_on_a_gpu_it_is_native() -> None:
    q, e = torch.randn(20, 7, device="cuda"), torch.randn(3000, 7, device="cuda")
    seen = SeenItems.from_lists([[1, 2, 3]] * 20, "cuda")
    with backend("native"):
        eager = catalog_topk(q, e, 5, seen=seen)
        compiled = torch.compile(catalog_topk, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, eager, compiled(q, e, 5, seen=seen)))
    with backend("reference"):
        assert torch.equal(eager.ids, catalog_topk(q, e, 5, seen=seen).ids)
    parts = torch.ops.seqrec_kernels.catalog_topk.default
    torch.library.opcheck(parts, (q, e, 5, None, 0, *seen, "native"))


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_graph_of_it_can_be_replayed() -> None:
    q, e = torch.randn(20, 7, device="cuda"), torch.randn(3000, 7, device="cuda")
    seen = SeenItems.from_lists([[1, 2, 3]] * 20, "cuda")
    selection.forward(q, e, 5, None, 0, seen)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores, ids = selection.forward(q, e, 5, None, 0, seen)
    q.copy_(torch.randn(20, 7))
    graph.replay()
    assert all(map(torch.equal, (scores, ids), selection.forward(q, e, 5, None, 0, seen)))
