"""Ranks and metrics against counting and shuffling by hand; the protocol card against a log."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import config, jagged
from torch import Tensor

from seqrec.data.log import read_log
from seqrec.data.split import Targets, split_log
from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.evaluation.judge import judge, judge_rulers, metrics_of
from seqrec.evaluation.misses import MISS
from seqrec.evaluation.protocol import protocol_card
from seqrec.evaluation.ranking import Evaluator, Ranks
from seqrec.methods.base import Method, Step

V = 12
CPU = torch.device("cpu")


class Counting(Method):
    """Whole-numbered scores with many ties: the last two items of a history against a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randint(-2, 3, (V, 3), generator=torch.Generator().manual_seed(4))
        self.seen_lengths: list[int] = []

    def rows(self, store: SequenceStore) -> int:
        raise AssertionError("not asked for in evaluation")

    def batch(self, store: SequenceStore, rows: np.ndarray) -> Any:
        raise AssertionError("not asked for in evaluation")

    def loss(self, batch: Any, step: Step) -> Tensor:
        raise AssertionError("not asked for in evaluation")

    def queries(self, histories: JaggedBatch) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen_lengths += histories.lengths.tolist()
        rows = histories.items.split(histories.lengths.tolist())
        return torch.stack([self.table[row[-2:]].sum(0) for row in rows]).float()

    def items(self) -> Tensor:
        return self.table.float()

    def scores(self, history: list[int]) -> list[int]:
        query = self.table[history[-2:]].sum(0)
        return [int(x) for x in (self.table * query).sum(1)]


def targets(seed: int = 0, users: int = 41) -> tuple[Targets, list[list[int]], list[int]]:
    """Histories with repeats; a third of the targets stands in the user's own history."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, V, int(rng.integers(1, 9))).tolist() for _ in range(users)]
    items = [
        int(rng.choice(row)) if user % 3 == 0 else int(rng.integers(V))
        for user, row in enumerate(rows)
    ]
    made = Targets(np.arange(users) * 7, jagged(*rows), np.array(items))
    return made, rows, items


def counted(scores: list[int], history: list[int], target: int, rule: str) -> tuple[int, int]:
    """greater and equal by the contract's words."""
    if rule == "exclude" and target in history:
        return MISS, 0
    if rule == "zero":
        scores = [0 if item in history else score for item, score in enumerate(scores)]
    candidates = [
        item for item in range(V) if item != target and not (rule == "exclude" and item in history)
    ]
    greater = sum(scores[item] > scores[target] for item in candidates)
    equal = sum(scores[item] == scores[target] for item in candidates)
    return greater, equal


@pytest.mark.parametrize("batch", [1, 7, 41, 1000])
def test_ranks_are_counts_under_every_rule(batch: int) -> None:
    made, rows, items = targets()
    method = Counting()
    rules = ("exclude", "include", "zero")
    found = Evaluator(made, 50, CPU, batch).ranks(method, rules)
    ties = 0
    for rule in rules:
        assert found[rule].users.tolist() == made.users.tolist()
        for user, (history, target) in enumerate(zip(rows, items, strict=True)):
            wanted = counted(method.scores(history), history, target, rule)
            assert (found[rule].greater[user], found[rule].equal[user]) == wanted, (rule, user)
            ties += wanted[1]
    assert ties > 100  # the log is one of ties
    assert len(method.seen_lengths) == len(rows)  # every user is encoded once for all rules


def test_the_encoder_sees_the_last_events_and_the_seen_rule_all_of_them() -> None:
    made, rows, items = targets()
    method = Counting()
    found = Evaluator(made, 2, CPU, 16).ranks(method, ("exclude",))["exclude"]
    assert max(method.seen_lengths) == 2
    for user, (history, target) in enumerate(zip(rows, items, strict=True)):
        wanted = counted(method.scores(history), history, target, "exclude")
        assert (found.greater[user], found.equal[user]) == wanted


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
def test_a_target_in_the_input_is_a_miss_at_any_k(ties: str) -> None:
    """Also at a K beyond the size of the catalogue."""
    made = Targets(np.array([0]), jagged([3, 4]), np.array([4]))
    metrics = Evaluator(made, 5, CPU, 8).ranks(Counting())["exclude"].metrics((5, V, 100), ties)
    assert set(metrics.values()) == {0.0}
    assert len(metrics) == 9


def shuffled(greater: int, equal: int, k: int) -> dict[str, float]:
    """Expected metrics over all orders of the tied items, the target among them."""
    gains = {"HR": 0.0, "NDCG": 0.0, "MRR": 0.0}
    orders = list(itertools.permutations(range(equal + 1)))
    for order in orders:
        place = greater + order.index(0) + 1
        if place <= k:
            gains["HR"] += 1 / len(orders)
            gains["NDCG"] += 1 / math.log2(place + 1) / len(orders)
            gains["MRR"] += 1 / place / len(orders)
    return gains


def test_metrics_are_what_shuffling_the_ties_gives() -> None:
    pairs = [(g, e) for g in (0, 1, 3, 4, 5, 9) for e in range(6)] + [(MISS, 0)]
    ranks = Ranks(
        np.arange(len(pairs)), np.array([g for g, _ in pairs]), np.array([e for _, e in pairs])
    )
    ks = (1, 3, 5)
    rules = {
        "mean": lambda g, e, k: shuffled(g, e, k),
        "optimistic": lambda g, e, k: shuffled(g, 0, k),
        "pessimistic": lambda g, e, k: shuffled(g + e, 0, k),
    }
    for rule, gains in rules.items():
        found = ranks.metrics(ks, rule)
        for k in ks:
            each = [gains(g, e, k) for g, e in pairs]
            for name in ("HR", "NDCG", "MRR"):
                wanted = sum(gain[name] for gain in each) / len(pairs)
                assert found[f"{name}@{k}"] == pytest.approx(wanted, abs=1e-12), (rule, name, k)


def test_ranks_come_back_from_their_file_and_equal_ranks_are_equal_bytes(tmp_path: Path) -> None:
    ranks = Ranks(np.array([4, 9]), np.array([0, MISS]), np.array([3, 0]))
    ranks.save(tmp_path / "ranks" / "test.npz")
    first = (tmp_path / "ranks" / "test.npz").read_bytes()
    back = Ranks.load(tmp_path / "ranks" / "test.npz")
    for name in ("users", "greater", "equal"):
        assert getattr(back, name).dtype == np.int64
        assert getattr(back, name).tolist() == getattr(ranks, name).tolist()
    assert set(np.load(tmp_path / "ranks" / "test.npz").files) == {"user", "greater", "equal"}
    ranks.save(tmp_path / "ranks" / "test.npz")
    assert (tmp_path / "ranks" / "test.npz").read_bytes() == first
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["test.npz"]


LOG = {
    "ann": ["a", "b", "c", "a", "d"],  # test target d; validation target a stands in the input
    "bob": ["b", "c", "b"],  # test target b stands in the input
    "cyd": ["a", "c", "e"],  # test target e is trained by nobody
    "dee": ["d", "a"],  # too short: trains whole, is not evaluated
}


def test_the_card_counts_what_it_says() -> None:
    split = split_log(read_log(LOG))
    assert protocol_card(config(), split) == {
        "id": "leave-one-out/exclude/mean",
        "split": "leave-one-out",
        "seen": "exclude",
        "ties": "mean",
        "select": "NDCG@10",
        "users_evaluated": 3,
        "targets_in_input": 1,
        "targets_never_trained": 1,
    }
    other = protocol_card(config(evaluation__ties="optimistic"), split, seen="zero")
    assert other["id"] == "leave-one-out/zero/optimistic"
    asked = protocol_card(config(evaluation__seen="zero"), split, seen="include", ties="mean")
    assert asked["id"] == "leave-one-out/include/mean"


def test_the_judge_asks_for_validation_without_and_test_with_the_validation_item() -> None:
    log = read_log(LOG)
    split = split_log(log)
    rows = {name: row for row, name in enumerate(log.items)}
    asked = config(evaluation__batch=2)

    class Small(Counting):
        def items(self) -> Tensor:
            return self.table[: log.n_items].float()

    method = Small()
    found = judge(method, asked, split, CPU, ("include",))["include"]
    for part, behind in (("valid", 1), ("test", 0)):
        for index, user in enumerate(("ann", "bob", "cyd")):
            events = [rows[item] for item in LOG[user]]
            cut = len(events) - 1 - behind
            scores = method.scores(events[:cut])[: log.n_items]
            others = [item for item in range(log.n_items) if item != events[cut]]
            greater = sum(scores[item] > scores[events[cut]] for item in others)
            assert found[part].greater[index] == greater
    metrics = metrics_of(found, asked, "mean")
    assert set(metrics) == {"valid", "test"}
    assert metrics["test"] == found["test"].metrics((5, 10, 20), "mean")


def test_rulers_are_judged_on_the_same_users_and_miss_the_same_targets() -> None:
    random.seed(0)
    log = {f"u{n}": [f"i{random.randrange(6)}" for _ in range(5)] for n in range(20)}
    split = split_log(read_log(log))
    found = judge_rulers(split, "exclude")
    assert set(found) == {"popularity", "item-to-item"}
    own = Evaluator(split.test, 5, CPU, 8)
    method = Counting()
    method.table = method.table[: split.n_items]
    missed = own.ranks(method)["exclude"].greater == MISS
    assert missed.any() and not missed.all()
    for parts in found.values():
        assert parts["test"].users.tolist() == split.test.users.tolist()
        assert ((parts["test"].greater == MISS) == missed).all()
