"""Soft labels against the definition, row by row, and against the counts on Beauty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from little import jagged

from seqrec.data.log import read_log
from seqrec.data.split import split_log
from seqrec.data.store import SequenceStore
from seqrec.methods.labels import SoftLabels, label_items, label_weights


@pytest.mark.parametrize(
    ("gamma", "two", "three"),
    [
        (0.2, [0.833333, 0.166667], [0.806452, 0.161290, 0.032258]),
        (0.3, [0.769231, 0.230769], [0.719424, 0.215827, 0.064748]),
        (0.4, [0.714286, 0.285714], [0.641026, 0.256410, 0.102564]),
        (0.0, [1.0, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_weights_by_the_length_of_the_window(
    gamma: float, two: list[float], three: list[float]
) -> None:
    wanted = torch.tensor([[1.0, 0.0, 0.0], [*two, 0.0], three])
    torch.testing.assert_close(label_weights(gamma), wanted, rtol=0, atol=1e-6)


def test_both_rules_on_a_sequence_that_comes_back_to_an_item() -> None:
    store = SequenceStore(jagged([5, 6, 5, 7, 5], [], [3], [6, 5]))
    assert label_items(store, "own").tolist() == [
        *([6, 5, 7], [5, 7, 5], [7, 5, -1], [5, -1, -1]),
        [5, -1, -1],  # another user's
    ]
    # 5 is first seen at the sequence's first place, which no row predicts
    assert label_items(store, "first").tolist() == [
        *([6, 5, 7], [5, 6, 5], [7, 5, -1], [5, 6, 5]),
        [5, -1, -1],
    ]


@pytest.mark.parametrize("place", ["own", "first"])
@pytest.mark.parametrize("seed", range(3))
def test_labels_are_the_definition_row_by_row(place: str, seed: int) -> None:
    """As dense rows, where the weights of an item that stands twice in its window add up."""
    rng = np.random.default_rng(seed)
    items, gamma = 7, 0.3
    rows = [rng.integers(0, items, rng.integers(0, 12)).tolist() for _ in range(40)]
    wanted = []
    for row in rows:
        for t in range(1, len(row)):
            begin = row.index(row[t]) if place == "first" else t
            window = row[begin : begin + 3]
            total = sum(gamma**k for k in range(len(window)))
            label: Counter[int] = Counter()
            for k, item in enumerate(window):
                label[item] += gamma**k / total  # type: ignore[assignment]
            wanted.append([label[item] for item in range(items)])
    store = SequenceStore(jagged(*rows))
    chosen = torch.from_numpy(rng.permutation(len(wanted)))
    targets, weights = SoftLabels(store, gamma, place).of(chosen)
    found = torch.zeros(len(chosen), items + 1).scatter_add_(1, targets % (items + 1), weights)
    assert (found[:, items] == 0).all()  # what stands in an empty slot weighs nothing
    assert (targets.max(1).values >= 0).all()
    torch.testing.assert_close(found[:, :items], torch.tensor(wanted)[chosen], rtol=0, atol=1e-6)
    assert (targets[:, 1] != targets[:, 0]).any() and (found.max(1).values < 0.99).any()


def test_window_lengths_on_beauty(real_log: Callable[[str], Path]) -> None:
    """No user of this log repeats an item, so both rules are one."""
    store = SequenceStore(split_log(read_log(real_log("Beauty.txt"))).train)
    own = label_items(store, "own")
    assert len(own) == 131_413
    assert np.bincount((own >= 0).sum(1)).tolist() == [0, 22_363, 22_363, 86_687]
    assert np.array_equal(own, label_items(store, "first"))
