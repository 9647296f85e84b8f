"""Shuffles are functions of their counters; batches are exactly the rows that were asked for."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from seqrec.data import Jagged
from seqrec.data.philox import STREAM_SHUFFLE, permutation, words
from seqrec.data.store import JaggedBatch, SequenceStore, epoch_order

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ),
]


def test_the_known_answers_of_the_generator() -> None:
    r, k = np.array([0, 0, 1, 5]), np.array([0, 1, 0, 7])
    uniform = (words(3, 1, k, r)[0] >> 8) * 2.0**-24
    wanted = [0.08167261, 0.67114049, 0.15195173, 0.27169479]
    np.testing.assert_allclose(uniform, wanted, atol=5e-9)


def test_an_epoch_visits_every_row_once_in_a_fixed_order() -> None:
    order = epoch_order(7, 3, 70_000)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(70_000))
    assert np.array_equal(order, permutation(7, 3, 70_000))
    # these numbers are part of every run's meaning: they must not change
    assert permutation(7, 3, 10).tolist() == GOLDEN
    assert permutation(2**40 + 7, 3, 10).tolist() != GOLDEN
    assert epoch_order(0, 0, 0).tolist() == []


GOLDEN = [8, 6, 9, 7, 2, 4, 0, 5, 3, 1]


def test_the_shuffle_is_a_sort_by_random_bits() -> None:
    high, low, *_ = words(11, STREAM_SHUFFLE, np.arange(1000), 5)
    key = [(int(h) << 31 | int(w) >> 1, i) for i, (h, w) in enumerate(zip(high, low, strict=True))]
    assert permutation(11, 5, 1000).tolist() == [i for _, i in sorted(key)]


def test_shuffles_look_uniform() -> None:
    # place of row 0 over epochs: chi-square of 8 cells with 7 degrees of freedom; 29.9 is p = 1e-4
    place = [permutation(0, epoch, 8).tolist().index(0) for epoch in range(4000)]
    counts = np.bincount(place, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 29.9
    assert not np.array_equal(permutation(0, 0, 100), permutation(0, 1, 100))
    assert not np.array_equal(permutation(0, 0, 100), permutation(1, 0, 100))


def lists(batch: JaggedBatch) -> list[list[int]]:
    items, offsets = batch.items.tolist(), batch.offsets.tolist()
    found = [items[a:b] for a, b in pairwise(offsets)]
    assert batch.lengths.tolist() == [len(row) for row in found] and batch.lengths.is_cpu
    assert len(batch) == len(found) and batch.max_length == max(map(len, found), default=0)
    assert batch.items.dtype == batch.offsets.dtype == torch.int64
    assert batch.rows().tolist() == [b for b, row in enumerate(found) for _ in row]
    assert batch.places().tolist() == [i for row in found for i in range(len(row))]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(10))
def test_batches_against_lists(device: str, seed: int) -> None:
    draw = random.Random(seed)
    source = [draw.choices(range(50), k=draw.choice([0, 0, 1, 2, 3, 9])) for _ in range(20)]
    store = SequenceStore(Jagged.from_lists(source), device)
    assert store.n_sequences == 20
    rows = draw.choices(range(20), k=12)
    for limit in (1, 2, 4, 100):
        batch = store.batch(np.array(rows), limit)
        wanted = [source[row][-limit:] for row in rows]
        assert lists(batch) == wanted
        assert batch.device.type == device

        inputs, targets = batch.shifted()
        pairs = [row for row in wanted if len(row) >= 2]
        assert lists(inputs) == [row[:-1] for row in pairs]
        assert targets.tolist() == [item for row in pairs for item in row[1:]]
        if pairs:
            assert inputs.items[inputs.last()].tolist() == [row[-2] for row in pairs]

        for width in (None, 0, 1, 3, 12):
            w = max(map(len, wanted)) if width is None else width
            dense = [(row[-w:] if w else []) for row in wanted]
            dense = [row + [-7] * (w - len(row)) for row in dense]
            assert batch.padded(width, fill=-7).tolist() == dense


@pytest.mark.parametrize("device", DEVICES)
def test_batches_one_after_the_other(device: str) -> None:
    store = SequenceStore(Jagged.from_lists([[1, 2, 3], [], [4], [5, 6]]), device)
    asked = [[3, 0], [], [2, 2, 1], [0]]
    parts = [store.batch(np.array(rows, dtype=np.int64), 5) for rows in asked]
    both, alone = JaggedBatch.concatenated(parts), store.batch(np.array([3, 0, 2, 2, 1, 0]), 5)
    assert lists(both) == lists(alone) == [[5, 6], [1, 2, 3], [4], [4], [], [1, 2, 3]]
    assert torch.equal(both.offsets, alone.offsets) and torch.equal(both.lengths, alone.lengths)
    assert lists(JaggedBatch.concatenated(parts[:1])) == lists(parts[0])


@pytest.mark.parametrize("device", DEVICES)
def test_places_from_either_end(device: str) -> None:
    batch = SequenceStore(Jagged.from_lists([[7, 8, 9], [], [5]]), device).batch(np.arange(3), 5)
    assert batch.places().tolist() == [0, 1, 2, 0]
    assert batch.places_from_end().tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(5))
def test_prefixes_against_lists(device: str, seed: int) -> None:
    draw = random.Random(seed)
    source = [draw.choices(range(50), k=draw.choice([0, 0, 1, 2, 3, 9])) for _ in range(20)]
    store = SequenceStore(Jagged.from_lists(source), device)
    wanted = [(b, end) for b, row in enumerate(source) for end in range(1, len(row))]
    sequences, ends = store.prefix_index()
    assert list(zip(sequences.tolist(), ends.tolist(), strict=True)) == wanted
    assert store.n_prefixes == len(wanted)
    order = epoch_order(seed, 0, store.n_prefixes)
    inputs, targets = store.prefix_batch(torch.from_numpy(order), 4)
    chosen = [wanted[p] for p in order]
    assert lists(inputs) == [source[b][:end][-4:] for b, end in chosen]
    assert targets.tolist() == [source[b][end] for b, end in chosen]


def test_nothing_at_all() -> None:
    store = SequenceStore(Jagged.from_lists([[], [3]]))
    assert store.n_prefixes == 0
    empty = store.batch(np.array([], dtype=np.int64), 5)
    assert lists(empty) == [] and empty.padded().shape == (0, 0)
    inputs, targets = store.batch(np.array([0, 1]), 5).shifted()
    assert lists(inputs) == [] and targets.tolist() == []


def test_the_store_does_not_change_with_its_source() -> None:
    source = Jagged.from_lists([[1, 2], [3]])
    store = SequenceStore(source)
    source.values[:] = 0
    assert lists(store.batch(np.array([0, 1]), 5)) == [[1, 2], [3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_never_waits_for_the_device() -> None:
    store = SequenceStore(Jagged.from_lists([[1, 2, 3], [4], [5, 6]]), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs, _ = store.batch(np.array([2, 0]), 3).shifted()
        inputs.padded(4)
        inputs.places()
        store.prefix_batch(np.array([0, 2]), 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
