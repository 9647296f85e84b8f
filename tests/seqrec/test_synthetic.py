"""The synthetic log follows its law, and the best possible ranker is the best possible ranker."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from seqrec.data import Targets, best_possible, read_log, split_log, synthetic
from seqrec.data.best_possible import leak, probabilities
from seqrec.data.synthetic import Specification, World
from seqrec.errors import UsageError
from seqrec.evaluation.rulers import ItemToItem, Popularity

KS = (5, 10, 20)
TINY = "synthetic:users=60,items=13,groups=3,seed=5"


def hit_rate(greater: np.ndarray, equal: np.ndarray, k: int = 10) -> float:
    """HR@k when tied items are shuffled: the uniform part of the catalogue is one large tie."""
    return float(np.clip((k - greater) / (equal + 1), 0, 1).mean())


# The log


def test_golden() -> None:
    # the same log on every machine and under every version: other figures are another data set
    log = read_log("synthetic")
    assert (log.n_users, log.n_items, log.format) == (10_000, 500, "synthetic")
    digest = hashlib.sha256(log.offsets.astype("<i8").tobytes())
    digest.update(log.item_rows.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == GOLDEN
    canonical = b"synthetic:users=10000,items=500,groups=10,seed=0"
    assert log.sha256 == hashlib.sha256(canonical).hexdigest()
    assert log.users[3] == "u3" and log.items[7] == "i7" and log.times is None


GOLDEN = "279c224bd1f37c5d"


def test_every_number_of_the_specification_matters() -> None:
    log = read_log(TINY)
    again = read_log("synthetic: seed=5 ,groups=3,users=60,items=13")
    assert np.array_equal(log.item_rows, again.item_rows) and log.sha256 == again.sha256
    for other in ("users=61", "items=14", "groups=4", "seed=6"):
        key = other.split("=")[0]
        text = ",".join(
            other if part.startswith(key) else part for part in TINY.split(":")[1].split(",")
        )
        changed = read_log(f"synthetic:{text}")
        assert changed.sha256 != log.sha256
        assert not np.array_equal(changed.item_rows, log.item_rows)


def test_users_never_have_an_item_twice_and_start_in_their_group() -> None:
    for text in ("synthetic:users=500,items=6,groups=6", "synthetic:users=500,items=60,groups=7"):
        log = read_log(text)
        rows = [log.item_rows[a:b] for a, b in zip(log.offsets, log.offsets[1:], strict=False)]
        assert all(len(set(row)) == len(row) for row in rows)
        assert {len(row) for row in rows} <= set(range(6, 51))


def test_lengths() -> None:
    log = read_log("synthetic:users=40000,items=500")
    lengths = np.diff(log.offsets)
    assert lengths.min() == 6 and lengths.max() == 50
    # 5 + Geometric(1/5): mean 10, s.d. 4.47, so the mean of 40,000 is within .1
    assert abs(lengths.mean() - 10) < 0.1
    for k in range(1, 8):
        share = 0.8 ** (k - 1) * 0.2
        assert abs((lengths == 5 + k).mean() - share) < 5 * math.sqrt(share / 40_000)


def plain_step(world: World, group: int, last: int) -> list[float]:
    """m_g(v | last), word by word from the contract."""
    s = world.specification
    members = [v for v in range(s.items) if v % s.groups == group]
    weight = {v: 1 / (rank + 5) for rank, v in enumerate(members, start=1)}
    mixture = []
    for v in range(s.items):
        p = 0.15 / s.items
        if v in weight:
            p += 0.35 * weight[v] / sum(weight.values())
        for share, successor in zip((1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16), range(5), strict=True):
            if world.successors[last, successor] == v:
                p += 0.5 * share
        mixture.append(p)
    return mixture


def plain_posterior(world: World, history: list[int]) -> list[float]:
    """P(v | history), enumerating every group a user may have."""
    s = world.specification
    belief = []
    for group in range(s.groups):
        members = [v for v in range(s.items) if v % s.groups == group]
        weight = {v: 1 / (rank + 5) for rank, v in enumerate(members, start=1)}
        p = weight.get(history[0], 0.0) / sum(weight.values())
        for t in range(1, len(history)):
            mixture = plain_step(world, group, history[t - 1])
            unseen = sum(m for v, m in enumerate(mixture) if v not in history[:t])
            p *= mixture[history[t]] / unseen
        belief.append(p)
    next_item = [0.0] * s.items
    for group, p in enumerate(belief):
        mixture = plain_step(world, group, history[-1])
        unseen = sum(m for v, m in enumerate(mixture) if v not in history)
        for v in range(s.items):
            if v not in history:
                next_item[v] += p / sum(belief) * mixture[v] / unseen
    return next_item


@pytest.mark.parametrize("text", [TINY, "synthetic:users=30,items=8,groups=8,seed=1"])
def test_probabilities_against_the_enumerated_posterior(text: str) -> None:
    world = World(Specification.parse(text))
    targets = split_log(read_log(text)).test
    found = probabilities(world, targets.inputs)
    for b in range(len(targets.items)):
        history = targets.inputs.row(b).tolist()
        if len(history) == world.specification.items:
            continue
        np.testing.assert_allclose(found[b], plain_posterior(world, history), atol=1e-14)
        assert math.isclose(found[b].sum(), 1)


def test_draws_follow_the_law() -> None:
    """Second events of many users against the exact distribution given the first."""
    text = "synthetic:users=60000,items=9,groups=3,seed=2"
    world, log = World(Specification.parse(text)), read_log(text)
    first, second = log.item_rows[log.offsets[:-1]], log.item_rows[log.offsets[:-1] + 1]
    weight = np.array([1 / 6, 1 / 7, 1 / 8])
    counts = np.bincount(first, minlength=9)
    wanted = 60_000 / 3 * np.repeat(weight / weight.sum(), 3)
    assert ((counts - wanted) ** 2 / wanted).sum() < 31.8  # 8 degrees of freedom, p = 1e-4
    total = 0.0
    for item in range(9):
        found = np.bincount(second[first == item], minlength=9)
        wanted = counts[item] * np.array(plain_posterior(world, [item]))
        assert found[item] == wanted[item] == 0
        rest = np.arange(9) != item
        total += float(((found - wanted)[rest] ** 2 / wanted[rest]).sum())
    assert total < 112.3  # 9 x 7 degrees of freedom, p = 1e-4


def test_successors_are_uniform() -> None:
    world = World(Specification(items=20, users=2, groups=2))
    many = np.concatenate(
        [World(Specification(items=20, groups=2, seed=seed)).successors for seed in range(200)]
    )
    assert world.successors.shape == (20, 5)
    counts = np.bincount(many.ravel(), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 50.8  # 19 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.06


# The best possible


def test_best_possible_by_brute_force() -> None:
    world = World(Specification.parse(TINY))
    targets = split_log(read_log(TINY)).test
    best = best_possible.best_possible(TINY, targets, (2, 5, 100))
    gains = {"HR": lambda i: 1.0, "NDCG": lambda i: 1 / math.log2(i + 1), "MRR": lambda i: 1 / i}
    for k in (2, 5, 100):
        for name, gain in gains.items():
            values, variances = [], []
            for b in range(len(targets.items)):
                history = targets.inputs.row(b).tolist()
                p = sorted(plain_posterior(world, history), reverse=True)
                top = [(x, gain(i) if i <= k else 0.0) for i, x in enumerate(p, start=1)]
                values.append(sum(x * g for x, g in top))
                variances.append(sum(x * g * g for x, g in top) - values[-1] ** 2)
            n = len(values)
            key = f"{name}@{k}"
            assert math.isclose(best.metrics[key], sum(values) / n, rel_tol=1e-12)
            wanted = math.sqrt(max(sum(variances), 0)) / n
            assert math.isclose(best.deviation[key], wanted, rel_tol=1e-9, abs_tol=1e-8)
            assert best.error[key] == 0
    for b in range(len(targets.items)):
        p = np.array(plain_posterior(world, targets.inputs.row(b).tolist())).round(12)
        own, target = p[targets.items[b]], targets.items[b]
        others = [v for v in range(13) if v != target and v not in targets.inputs.row(b)]
        assert best.greater[b] == sum(p[v] > own for v in others)
        assert best.equal[b] == sum(p[v] == own for v in others)
    assert best.users.tolist() == targets.users.tolist()

    # a target that cannot come next is behind everything that can, and level with nothing
    had = Targets(targets.users, targets.inputs, targets.inputs.values[targets.inputs.offsets[:-1]])
    again = best_possible.best_possible(TINY, had, (5,))
    assert again.greater.tolist() == (13 - targets.inputs.lengths()).tolist()
    assert not again.equal.any()


def test_the_defaults_are_what_the_contract_measured() -> None:
    split = split_log(read_log("synthetic"))
    best = best_possible.best_possible("synthetic", split.test, KS)
    assert round(best.metrics["HR@10"], 3) == 0.622 and round(best.metrics["NDCG@10"], 3) == 0.437
    rank = ItemToItem(split.train, 500).rank(split.test, "exclude")
    hr, ndcg = (rank[0] < 10).mean(), (1 / np.log2(rank[0] + 2))[rank[0] < 10].sum() / 10_000
    assert abs(hr - 0.467) < 0.015 and abs(ndcg - 0.354) < 0.012
    greater, _ = Popularity(split.train, 500).rank(split.test, "exclude")
    assert abs((greater < 10).mean() - 0.046) < 0.007


def test_no_order_beats_the_best() -> None:
    """Over redrawn targets the best ranker's mean is the best possible, and others are below."""
    world = World(Specification.parse("synthetic:users=400,items=200,groups=5,seed=1"))
    text = str(world.specification)
    targets = split_log(read_log(text)).test
    likely = probabilities(world, targets.inputs)
    draw = np.random.default_rng(0)
    found, blind = [], []
    for _ in range(40):
        uniform = draw.random((len(likely), 1))
        items = (likely.cumsum(axis=1) < uniform).sum(axis=1)
        redrawn = Targets(targets.users, targets.inputs, items)
        best = best_possible.best_possible(text, redrawn, (10,))
        found.append(hit_rate(best.greater, best.equal))
        other = likely + draw.normal(0, 0.05, likely.shape)
        own = other[np.arange(len(items)), items][:, None]
        blind.append(((other > own).sum(axis=1) < 10).mean())
    bound, sd = best.metrics["HR@10"], best.deviation["HR@10"]
    assert abs(np.mean(found) - bound) < 4 * sd / math.sqrt(40)
    # a tie across place 10 is averaged, not drawn: somewhat less than the deviation of one draw
    assert 0.6 < np.std(found) / sd < 1.4, "the deviation is that of redrawn targets"
    assert np.mean(blind) < bound - 4 * sd / math.sqrt(40)


def test_large_catalogues_are_estimated_from_some_users(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "synthetic:users=3000,items=100,groups=5"
    targets = split_log(read_log(text)).test
    whole = best_possible.best_possible(text, targets, KS)
    assert len(whole.users) == 3000 and set(whole.error.values()) == {0.0}
    monkeypatch.setattr(best_possible, "MANY_ITEMS", 50)
    part = best_possible.best_possible(text, targets, KS)
    assert len(part.users) == 1000 == len(set(part.users.tolist())) == len(part.greater)
    for name in part.metrics:
        assert 0 < abs(part.metrics[name] - whole.metrics[name]) < 4 * part.error[name]
        # the deviation stays that of all users' targets
        assert math.isclose(part.deviation[name], whole.deviation[name], rel_tol=0.1)


# Leaks


def test_a_planted_leak_is_found_and_honesty_is_not() -> None:
    text = "synthetic:users=2000,items=200,groups=5,seed=3"
    log = read_log(text)
    split = split_log(log)
    best = best_possible.best_possible(text, split.test, KS)
    honest = hit_rate(best.greater, best.equal)
    assert leak({"HR@10": honest}, best) is None

    # the leak: for one user in five the target was in training, and the ranker remembers it
    remembered = np.arange(2000) % 5 == 0
    found = hit_rate(np.where(remembered, 0, best.greater), np.where(remembered, 0, best.equal))
    told = leak({"HR@10": found}, best)
    assert told is not None and f"HR@10 {found:.4f}" in told and "leaked" in told
    assert "\n" not in told


def test_leak_begins_at_three_deviations() -> None:
    best = best_possible.BestPossible(
        metrics={"HR@10": 0.5},
        error={"HR@10": 0.004},
        deviation={"HR@10": 0.003},
        users=np.arange(1),
        greater=np.zeros(1, dtype=np.int64),
        equal=np.zeros(1, dtype=np.int64),
    )
    assert leak({"HR@10": 0.5149, "MRR@7": 1.0}, best) is None
    assert leak({"HR@10": 0.5151}, best) is not None


# Mistakes


@pytest.mark.parametrize(
    "text, what",
    [
        ("synthetic:users=0", "users=0 is out of range"),
        ("synthetic:users=1", "2 to"),
        ("synthetic:items=5,groups=5", "items=5 is out of range"),
        ("synthetic:items=10,groups=11", "items=10 is less than groups=11"),
        ("synthetic:groups=0", "groups=0 is out of range"),
        ("synthetic:user=5", "unknown key 'user' .* users, items, groups, seed"),
        ("synthetic:users", "users='' is no whole number"),
        ("synthetic:users=1e3", "'1e3' is no whole number"),
        ("synthetic:users=-4", "'-4' is no whole number"),
        ("synthetic:users=٣", "no whole number"),
        ("synthetic:users=5,users=6", "given twice"),
        ("synthetic:users=5,,seed=1", "unknown key ''"),
        (f"synthetic:seed={2**63}", "out of range"),
    ],
)
def test_bad_specifications(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        read_log(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"min_user": 5}, {"min_item": 2}, {"repeats": "first"}, {"format": "csv"}]
)
def test_a_synthetic_log_is_not_filtered(options: dict) -> None:
    with pytest.raises(UsageError, match="used whole"):
        read_log("synthetic:users=10", **options)


def test_a_colon_alone_means_the_defaults() -> None:
    assert synthetic.Specification.parse("synthetic:") == synthetic.Specification()
