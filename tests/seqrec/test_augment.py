"""Crop, mask and reorder: against plain Python one sequence at a time, and their distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from little import jagged

from seqrec.data.augment import CROP, MASK, REORDER, Augmentation
from seqrec.data.philox import STREAM_ITEMS, STREAM_SEQUENCES, words
from seqrec.data.store import JaggedBatch, SequenceStore

MASK_ROW = 1_000_000
USUAL = Augmentation(crop=0.6, mask=0.3, reorder=0.6, mask_row=MASK_ROW)


def batch_of(lengths: list[int]) -> JaggedBatch:
    """Sequences of distinct items, so that every item tells where it came from."""
    items = iter(range(sum(lengths)))
    rows = [list(itertools.islice(items, n)) for n in lengths]
    return SequenceStore(jagged(*rows)).batch(np.arange(len(rows)), max(lengths))


def lists(batch: JaggedBatch) -> list[list[int]]:
    offsets = batch.offsets.tolist()
    assert batch.lengths.tolist() == [b - a for a, b in itertools.pairwise(offsets)]
    return [batch.items[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def one_by_one(
    batch: JaggedBatch, operators: np.ndarray, by: Augmentation, seed: int, view: int
) -> list[list[int]]:
    """The same draws, a Python loop over sequences."""
    result, first = [], 0
    for b, row in enumerate(lists(batch)):
        n = len(row)
        number = words(seed, STREAM_ITEMS, np.arange(first, first + n), view)[0].tolist()
        first += n
        share = {CROP: by.crop, MASK: by.mask, REORDER: by.reorder}[int(operators[b])]
        size = math.floor(share * n + 1e-9)
        if operators[b] == CROP:
            size = max(size, 1)
        draw = int(words(seed, STREAM_SEQUENCES, np.array([b]), view)[0][0])
        begin = (draw * (n - size + 1)) >> 32
        if operators[b] == CROP:
            row = row[begin : begin + size]
        elif operators[b] == MASK:
            hidden = sorted(range(n), key=lambda k: number[k])[:size]
            row = [MASK_ROW if k in hidden else v for k, v in enumerate(row)]
        else:
            window = sorted(range(begin, begin + size), key=lambda k: number[k])
            row = row[:begin] + [row[k] for k in window] + row[begin + size :]
        result.append(row)
    return result


@pytest.mark.parametrize("seed", range(6))
def test_every_operator_against_plain_python(seed: int) -> None:
    draw = np.random.default_rng(seed)
    batch = batch_of(draw.integers(1, 60, size=100).tolist())
    by = Augmentation(*draw.uniform(0, 1, size=3), mask_row=MASK_ROW)
    before = batch.items.clone()
    for view in (0, 1):
        operators = draw.integers(0, 3, size=100)
        found = by.apply(batch, operators, seed, view)
        assert lists(found) == one_by_one(batch, operators, by, seed, view)
    assert torch.equal(batch.items, before)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_shares(share: float) -> None:
    batch = batch_of([1, 2, 7])
    by = Augmentation(share, share, share, MASK_ROW)
    whole = lists(batch)
    cropped = lists(by.apply(batch, np.full(3, CROP), 0, 0))
    assert cropped == whole if share else [len(row) for row in cropped] == [1, 1, 1]
    masked = lists(by.apply(batch, np.full(3, MASK), 0, 0))
    assert masked == ([[MASK_ROW] * len(row) for row in whole] if share else whole)
    mixed = lists(by.apply(batch, np.full(3, REORDER), 0, 0))
    assert [sorted(row) for row in mixed] == whole and (mixed != whole) == bool(share)


def test_a_sequence_of_one_item_stays() -> None:
    batch = batch_of([1] * 50)
    for view in USUAL.views(batch, seed=1):
        assert lists(view) == lists(batch)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_two_operators_differ_and_every_pair_is_as_likely() -> None:
    """Told apart by what they leave behind; ten items, where each operator shows."""
    rows = 12_000
    batch = batch_of([10] * rows)

    def kinds(view: JaggedBatch) -> np.ndarray:
        hidden = [MASK_ROW in row for row in lists(view)]
        return np.where(view.lengths.numpy() < 10, CROP, np.where(hidden, MASK, REORDER))

    one, other = (kinds(view) for view in USUAL.views(batch, seed=4))
    assert not (one == other).any()
    counts = np.bincount(one * 3 + other, minlength=9)
    assert chi_square(counts[counts > 0]) < 20.5 and (counts > 0).sum() == 6  # 5 d.f., p = .001


def test_windows_masks_and_orders_are_uniform() -> None:
    rows = 20_000
    batch = batch_of([5] * rows)
    first = batch.offsets[:-1]

    crop = USUAL.apply(batch, np.full(rows, CROP), 9, 0)  # 3 of 5: three places to begin
    begins = (crop.items[crop.offsets[:-1]] - first).numpy()
    assert chi_square(np.bincount(begins, minlength=3)) < 13.8  # 2 d.f., p = .001

    by = Augmentation(0.6, 0.4, 0.6, MASK_ROW)  # 2 of 5: ten pairs
    hidden = by.apply(batch, np.full(rows, MASK), 9, 0).items.view(rows, 5) == MASK_ROW
    assert (hidden.sum(1) == 2).all()
    pairs = (hidden * 2 ** torch.arange(5)).sum(1)
    counts = torch.bincount(pairs, minlength=32).numpy()
    assert (counts > 0).sum() == 10 and chi_square(counts[counts > 0]) < 27.9  # 9 d.f.

    mixed = USUAL.apply(batch, np.full(rows, REORDER), 9, 0).items.view(rows, 5) - first[:, None]
    whole = Augmentation(0.6, 0.3, 1.0, MASK_ROW).apply(batch, np.full(rows, REORDER), 9, 0)
    orders = ((whole.items.view(rows, 5) - first[:, None]) * 5 ** torch.arange(5)).sum(1)
    counts = torch.unique(orders, return_counts=True)[1].numpy()
    assert len(counts) == 120 and chi_square(counts) < 173.6  # 119 d.f., p = .001
    still = (mixed == torch.arange(5)).double().mean(0)  # outside the window nothing moves
    assert still.min() > 0.3 and still[0] > still[2] < still[4]


def test_views_follow_the_seed_and_differ_from_each_other() -> None:
    batch = batch_of([30] * 40)
    one, other = USUAL.views(batch, seed=7)
    again, _ = USUAL.views(batch, seed=7)
    third, _ = USUAL.views(batch, seed=8)
    assert lists(one) == lists(again) != lists(third) and lists(one) != lists(other)
