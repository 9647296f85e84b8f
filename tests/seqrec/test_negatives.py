"""What the samplers draw: never what a user has met, and with the chances they state."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

from seqrec.data.store import SequenceStore
from seqrec.negatives import SAMPLERS, build_sampler
from seqrec.negatives.base import Question, Sampler
from seqrec.negatives.curriculum import narrowed
from seqrec.negatives.histories import Histories, Rows
from seqrec.negatives.settings import NegativesConfig
from seqrec.negatives.unseen import Unseen

ITEMS = 12
SEQUENCES = [[3, 5, 3, 0, 7], [11], [], [2, 2, 2], list(range(ITEMS)), [4, 1, 9, 4, 10, 6]]
STORE = SequenceStore(jagged(*SEQUENCES))
#: every place that has one before it in its sequence, as (sequence, place in it)
TARGETS = [(u, i) for u, items in enumerate(SEQUENCES) for i in range(1, len(items))]
PLACES = np.array([STORE.offsets[u] + i for u, i in TARGETS])


def met(exclude: str, target: tuple[int, int]) -> set[int]:
    sequence, place = target
    return set(SEQUENCES[sequence][: place + 1 if exclude == "history" else None])


def many(histories: Histories, target: int, times: int) -> Rows:
    """One target, `times` times over."""
    return histories.rows(np.repeat(PLACES[target], times))


def chi_square(counts: Tensor, chances: Tensor) -> float:
    """Standard deviations by which chi-square exceeds its mean; no chance, no count."""
    assert not counts[chances == 0].any()
    drawn, expected = counts[chances > 0].double(), chances[chances > 0] * counts.sum()
    freedom = len(drawn) - 1
    if freedom == 0:
        return 0.0
    return (float(((drawn - expected) ** 2 / expected).sum()) - freedom) / math.sqrt(2 * freedom)


# Who has met what ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude", ["history", "sequence"])
def test_a_target_s_seen_items_are_what_its_user_has_met(exclude: str) -> None:
    rows = Histories(STORE, ITEMS, exclude).rows(PLACES)
    for b, target in enumerate(TARGETS):
        seen = rows.seen.ids[rows.seen.offsets[b] : rows.seen.offsets[b + 1]].tolist()
        assert sorted(seen) == sorted(met(exclude, target))
        assert rows.met[b] == len(seen) and rows.sequences[b] == target[0]
        assert STORE.values[rows.places[b]] == SEQUENCES[target[0]][target[1]]


@pytest.mark.parametrize("exclude", ["history", "sequence"])
@pytest.mark.parametrize("widths", [None, [3, 0, 1, 7, 0, 2, 9, 1, 1, 30, 4, 0]])
def test_draws_are_those_of_the_catalogue_without_the_met_items(
    exclude: str, widths: list[int] | None
) -> None:
    histories = Histories(STORE, ITEMS, exclude)
    unseen = Unseen(histories, None if widths is None else np.array(widths))
    for b, target in enumerate(TARGETS):
        left = torch.ones(ITEMS) if widths is None else torch.tensor(widths, dtype=torch.float64)
        left[list(met(exclude, target))] = 0
        drawn = unseen.draw(many(histories, b, 400), 50, seed=7 + b, stream=24)
        if not left.any():
            assert (drawn == -1).all()
            continue
        counts = torch.bincount(drawn.flatten(), minlength=ITEMS)
        assert chi_square(counts, left.double() / left.sum()) < 4, target


def test_rows_and_draws_are_independent_of_each_other_and_of_how_many_are_asked() -> None:
    histories = Histories(STORE, ITEMS)
    unseen = Unseen(histories)
    rows = histories.rows(np.tile(PLACES, 2000))  # more than one turn
    drawn = unseen.draw(rows, 6, seed=5, stream=24)
    assert torch.equal(drawn, unseen.draw(rows, 6, seed=5, stream=24))
    assert torch.equal(drawn[:, :3], unseen.draw(rows, 3, seed=5, stream=24))
    few = histories.rows(PLACES[:4])
    assert torch.equal(drawn[:4], unseen.draw(few, 6, seed=5, stream=24))
    for other in (
        unseen.draw(rows, 6, seed=6, stream=24),
        unseen.draw(rows, 6, seed=5, stream=25),
    ):
        assert (other != drawn).double().mean() > 0.7
    # pairs of draws of one row: 10 items left of (sequence 0, place 1)
    pairs = unseen.draw(many(histories, 0, 20_000), 2, seed=1, stream=24)
    counts = torch.bincount(pairs[:, 0] * ITEMS + pairs[:, 1], minlength=ITEMS**2)
    alone = torch.ones(ITEMS, dtype=torch.float64)
    alone[[3, 5]] = 0
    assert chi_square(counts, torch.outer(alone, alone).flatten() / 100) < 4


def test_a_table_may_have_rows_that_are_no_items() -> None:
    histories = Histories(STORE, ITEMS + 2)
    drawn = Unseen(histories).draw(many(histories, 0, 400), 50, seed=1, stream=24)
    assert set(drawn.unique().tolist()) == set(range(ITEMS + 2)) - {3, 5}


def test_widths_that_numbers_of_32_bits_could_not_tell_apart_are_refused() -> None:
    with pytest.raises(
        ValueError, match="widths add up to 1073741844; they may to at most 1073741824"
    ):
        Unseen(Histories(STORE, ITEMS), np.full(ITEMS, (1 << 30) // ITEMS + 2))


# The samplers -------------------------------------------------------------------------------------


def sampler(name: str, exclude: str = "history", epochs: int = 0, **sets: Any) -> Sampler:
    made = build_sampler(NegativesConfig(sampler=name, exclude=exclude, **sets), epochs)
    made.prepare(Histories(STORE, ITEMS, exclude))
    return made


def question(seed: int = 0, epoch: int = 0, exclude: str = "history", times: int = 1) -> Question:
    """All targets, `times` times over, with random queries and items."""
    generator = torch.Generator().manual_seed(3)
    places = np.tile(PLACES, times)
    return Question(
        torch.randn(len(PLACES), 8, generator=generator).repeat(times, 1),
        torch.randn(ITEMS, 8, generator=generator),
        STORE.values[torch.from_numpy(places)],
        Histories(STORE, ITEMS, exclude).rows(places),
        epoch,
        seed,
    )


@pytest.mark.parametrize("exclude", ["history", "sequence"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_draws_what_a_user_has_met(name: str, exclude: str) -> None:
    asked = question(exclude=exclude, times=20)
    drawn = sampler(name, exclude, count=3).draw(asked)
    assert drawn.shape == (len(asked.positives), 3) and drawn.dtype == torch.int64
    found = set()
    for row, target in zip(drawn.tolist(), TARGETS * 20, strict=True):
        assert not set(row) & met(exclude, target)
        assert all(-1 <= item < ITEMS for item in row)
        # -1 for whoever has met all there is, only
        full = len(met(exclude, target)) == ITEMS
        assert (row == [-1, -1, -1]) == full or name == "popularity"
        found |= set(row)
    assert len(found) > 6


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_follow_the_seed_alone(name: str) -> None:
    one = sampler(name, count=2)
    drawn = one.draw(question(1, times=9))
    assert torch.equal(drawn, one.draw(question(1, times=9)))
    assert torch.equal(drawn, sampler(name, count=2).draw(question(1, times=9)))
    if name not in ("dns", "mixgcf"):  # the best of a hundred from twelve is always the same
        assert not torch.equal(drawn, one.draw(question(2, times=9)))
        assert not torch.equal(drawn[:, 0], drawn[:, 1])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_popularity_has_the_chances_of_the_counts(power: float) -> None:
    made = sampler("popularity", power=power, count=50)
    chances = torch.from_numpy(np.bincount(STORE.values.numpy(), minlength=ITEMS) ** power)
    log_q = made.log_q()
    assert log_q is not None
    torch.testing.assert_close(log_q.double().exp(), chances / chances.sum(), rtol=1e-6, atol=0)
    rows, asked = Histories(STORE, ITEMS), question()
    for b in (0, 3):
        one = Question(
            asked.queries, asked.items, asked.positives, many(rows, b, 400), 0, seed=11 + b
        )
        left = chances.clone()
        left[list(met("history", TARGETS[b]))] = 0
        drawn = torch.bincount(made.draw(one).flatten(), minlength=ITEMS)
        assert chi_square(drawn, left / left.sum()) < 4


def test_an_item_that_never_trains_is_no_popular_negative() -> None:
    histories = Histories(STORE, ITEMS + 1)
    made = build_sampler(NegativesConfig(sampler="popularity", count=50))
    made.prepare(histories)
    asked = question(times=50)
    assert int(made.draw(asked).max()) < ITEMS
    log_q = made.log_q()
    assert log_q is not None and torch.isfinite(log_q).all()
    assert build_sampler(NegativesConfig()).log_q() is None


# The curriculum -----------------------------------------------------------------------------------

# epochs of the run, after 30 of warm-up; T = 200, C = 200, M_min = 5, from the specification
EPOCHS = [30, 31, 32, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 180, 200, 229]
CODE = {
    0.01: [200, 197, 195, 188, 178, 168, 158, 140, 124, 109, 84, 64, 39, 22, 12, 5],
    0.03: [200, 194, 188, 172, 148, 128, 110, 82, 61, 45, 25, 14, 6, 5, 5, 5],
    0.05: [200, 190, 181, 156, 122, 95, 74, 46, 28, 18, 7, 5, 5, 5, 5, 5],
    0.1: [200, 181, 164, 122, 74, 46, 28, 11, 5, 5, 5, 5, 5, 5, 5, 5],
    0.15: [200, 172, 148, 95, 46, 22, 11, 5, 5, 5, 5, 5, 5, 5, 5, 5],
}
PAPER = {
    0.01: [197, 195, 193, 186, 176, 166, 156, 139, 123, 108, 83, 63, 39, 21, 12, 5],
    0.05: [190, 181, 172, 148, 116, 90, 71, 44, 27, 17, 7, 5, 5, 5, 5, 5],
    0.1: [181, 164, 148, 110, 67, 41, 26, 10, 5, 5, 5, 5, 5, 5, 5, 5],
    0.15: [172, 148, 128, 82, 40, 19, 10, 5, 5, 5, 5, 5, 5, 5, 5, 5],
}
FIRST_AT_5 = {
    "code": {0.01: 218, 0.03: 157, 0.05: 108, 0.1: 70, 0.15: 57},
    "paper": {0.01: 218, 0.05: 107, 0.1: 69, 0.15: 56},
}
FOUR_HUNDRED = {0.01: [400, 316, 169, 79], 0.05: [400, 149, 15, 5], 0.1: [400, 57, 5, 5]}
FOUR_HUNDRED[0.15] = [400, 23, 5, 5]  # epochs 30, 50, 100, 150


def m(epoch: int, decay: float, indexing: str = "code", candidates: int = 200) -> int:
    return narrowed(epoch - 30, candidates, decay=decay, terms=200, smallest=5, indexing=indexing)


@pytest.mark.parametrize(("indexing", "table"), [("code", CODE), ("paper", PAPER)])
def test_the_curriculum_is_the_tabulated_one(indexing: str, table: dict[float, list[int]]) -> None:
    for decay, wanted in table.items():
        assert [m(epoch, decay, indexing) for epoch in EPOCHS] == wanted, decay
        first = next(epoch for epoch in range(30, 300) if m(epoch, decay, indexing) == 5)
        assert first == FIRST_AT_5[indexing][decay]
        assert m(5000, decay, indexing) == 5  # a run may outlast the terms


def test_the_curriculum_of_twice_the_candidates_is_the_tabulated_one() -> None:
    for decay, wanted in FOUR_HUNDRED.items():
        assert [m(epoch, decay, candidates=400) for epoch in (30, 50, 100, 150)] == wanted


def test_r2ns_narrows_by_its_settings_and_says_so() -> None:
    made = build_sampler(NegativesConfig(sampler="r2ns", decay=0.1), warmup_epochs=30)
    assert [made.facts(epoch) for epoch in (30, 45, 300)] == [
        {"top_m": 200}, {"top_m": 46}, {"top_m": 5},
    ]  # fmt: skip
    paper = build_sampler(NegativesConfig(sampler="r2ns", indexing="paper", terms=200), 30)
    assert paper.facts(30) == {"top_m": 190}
    fixed = build_sampler(NegativesConfig(sampler="r2ns", decay=0.0, top_m=7), 30)
    assert fixed.facts(30) == fixed.facts(99) == {"top_m": 7}


# The hard ones ------------------------------------------------------------------------------------


def picked(made: Sampler, of: Question) -> list[Counter[int]]:
    """How often each item was drawn for each target."""
    found: list[Counter[int]] = [Counter() for _ in TARGETS]
    for row, items in zip(itertools.cycle(found), made.draw(of).tolist(), strict=False):
        row.update(items)
    return found


def ranked(of: Question, b: int, allowed: set[int]) -> list[int]:
    """Allowed items of a row, best first."""
    scores = (of.items @ of.queries[b]).tolist()
    return sorted(allowed - {-1}, key=lambda item: -scores[item])


def allowed(b: int) -> set[int]:
    return set(range(ITEMS)) - met("history", TARGETS[b])


def test_dns_draws_the_best_of_its_candidates() -> None:
    """Four hundred draws from twelve items are all that is allowed, for all but 1e-14 of rows."""
    asked = question(times=3)
    for b, counts in enumerate(picked(sampler("dns", pool=400), asked)):
        assert counts == {(ranked(asked, b, allowed(b)) or [-1])[0]: 3}


def test_dns_plus_draws_uniformly_from_the_best_of_its_candidates() -> None:
    asked = question(times=300)
    drawn = picked(sampler("dns+", pool=400, top_m=3), asked)
    for b, counts in enumerate(drawn):
        best = ranked(asked, b, allowed(b))[:3]
        assert set(counts) == set(best or [-1])
        if len(best) == 3:
            values = torch.tensor([counts[item] for item in best])
            assert chi_square(values, torch.full((3,), 1 / 3, dtype=torch.float64)) < 4


def test_few_candidates_are_those_of_the_uniform_sampler() -> None:
    """DNS only ever chooses among what RNS would have drawn."""
    asked = question(seed=5, times=30)
    pool = sampler("uniform", count=4).draw(asked)
    drawn = sampler("dns", pool=4).draw(asked)[:, 0]
    scores = (asked.queries[:, None] * asked.items[pool.clamp(min=0)]).sum(2)
    assert torch.equal(drawn, pool[torch.arange(len(pool)), scores.argmax(1)])


@pytest.mark.parametrize("recall_by", ["max-index", "mean"])
@pytest.mark.parametrize("form", ["corrected", "published"])
def test_r2ns_recalls_by_the_mean_query_and_forgets_what_was_met(form: str, recall_by: str) -> None:
    """Without a pool: of the globally best, the M best for the row; published, whatever was met."""
    asked = question(times=40)
    mean = asked.queries.mean(0)
    by = asked.items @ mean if recall_by == "mean" else asked.items[:, mean.argmax()]
    recalled = set(by.topk(5).indices.tolist())
    made = sampler("r2ns", recall=5, pool=0, top_m=2, decay=0.0, form=form, recall_by=recall_by)
    drawn = picked(made, asked)
    for b, counts in enumerate(drawn):
        left = recalled & allowed(b) if form == "corrected" else recalled
        assert set(counts) == set(ranked(asked, b, left)[:2] or [-1])
    if form == "published":
        assert any(
            int(positive) in counts
            for positive, counts in zip(asked.positives, drawn, strict=False)
        )


def test_r2ns_draws_from_both_kinds_of_candidates() -> None:
    asked = question(times=600)
    mean = asked.queries.mean(0)
    recalled = set(asked.items[:, mean.argmax()].topk(3).indices.tolist())
    made = sampler("r2ns", recall=3, pool=4, top_m=7, decay=0.0)
    for b, counts in enumerate(picked(made, asked)):
        assert set(counts) == (allowed(b) or {-1})
        # each recalled one is there in every row, another item in three of ten
        if len(allowed(b)) > 8:
            others = max(counts[item] for item in allowed(b) - recalled)
            assert all(counts[item] > 1.5 * others for item in allowed(b) & recalled)


def test_a_candidate_drawn_twice_counts_twice_as_published_only() -> None:
    """One item is left: in every slot of the pool, and once among the recalled."""
    asked = question(times=300)
    b = next(b for b, target in enumerate(TARGETS) if len(allowed(b)) == 1)
    (only,) = allowed(b)
    shares = {}
    for form in ("corrected", "published"):
        made = sampler("r2ns", recall=ITEMS, pool=6, top_m=18, decay=0.0, form=form)
        counts = picked(made, asked)[b]
        shares[form] = counts.get(only, 0) / sum(counts.values())
    assert shares["corrected"] == 1.0  # all others have been met
    assert shares["published"] == pytest.approx(7 / 18, abs=0.05)  # of 12 + 6 slots


def test_no_more_is_recalled_than_there_is() -> None:
    assert sampler("r2ns", recall=500, pool=0).draw(question()).shape == (len(TARGETS), 1)


@pytest.mark.parametrize("exclude", ["history", "sequence"])
def test_in_a_fixed_buffer_a_target_s_seen_items_are_the_same(exclude: str) -> None:
    histories = Histories(STORE, ITEMS, exclude)
    wanted = histories.rows(PLACES)
    found = histories.fixed_rows(torch.cat((torch.from_numpy(PLACES), torch.tensor([-1, -1]))))
    assert torch.equal(found.seen.offsets[:-2], wanted.seen.offsets)
    assert torch.equal(found.seen.ids[: len(wanted.seen.ids)], wanted.seen.ids)
    assert int(found.seen.offsets[-1]) <= len(found.seen.ids)
    again = histories.fixed_rows(torch.from_numpy(PLACES[:3].repeat(7)))
    assert len(again.seen.ids) == len(histories.fixed_rows(torch.full((21,), -1)).seen.ids)
