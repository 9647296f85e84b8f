"""A finished run asked for recommendations and evaluated again; one unfinished, or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from little import trained

import seqrec
from seqrec.cli import main
from seqrec.data.log import read_log
from seqrec.data.split import Jagged, Split, split_log
from seqrec.data.store import SequenceStore
from seqrec.errors import UsageError
from seqrec.evaluation.misses import MISS
from seqrec.evaluation.ranking import Ranks
from seqrec.run import Run
from seqrec.training.model_file import read_model


@pytest.fixture(scope="module")
def split(run: Run) -> Split:
    return split_log(read_log(run.config.data.path))


def by_hand(run: Run, history: list[str], k: int, include_seen: bool) -> list[str]:
    """Every item scored for one history alone, sorted by score, ties by catalogue order."""
    method, _ = read_model(run.directory, run.config, len(run.items), torch.device("cpu"))
    rows = [run.items.index(item) for item in history if item in run.items]
    batch = SequenceStore(Jagged.from_lists([rows])).batch(np.array([0]), 6)
    with torch.no_grad():
        scores = (method.items() @ method.queries(batch)[0]).tolist()
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    return [run.items[i] for i in order if include_seen or i not in rows][:k]


# Recommendations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("include_seen", [False, True])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_recommendations_are_the_best_scores_of_all_items(
    run: Run, k: int, include_seen: bool
) -> None:
    histories = {
        "alice": ["i1", "i4", "i9"],
        "one": ["i3"],
        "long": [f"i{n}" for n in range(14)],
        "repeats": ["i7", "i7", "i7"],
        "some unknown": ["no-such", "i2", "i2 ", "I3", "i5"],
    }
    found = run.recommend(histories, k, include_seen=include_seen)
    assert list(found) == list(histories)
    for user, history in histories.items():
        items = [item for item, _ in found[user]]
        scores = [score for _, score in found[user]]
        assert items == by_hand(run, history, k, include_seen)
        assert scores == sorted(scores, reverse=True)
        assert all(
            isinstance(item, str) and isinstance(score, float) for item, score in found[user]
        )
        left = len(run.items) - (0 if include_seen else len({*history} & {*run.items}))
        assert len(items) == min(k, left) == len(set(items))


def test_a_held_out_item_is_recommended_at_the_place_of_its_rank(run: Run, split: Split) -> None:
    """Evaluation and recommendation agree: rank g means place g of the list."""
    ranks = Ranks.load(run.directory / "ranks" / "test.npz")
    compared = 0
    for index in range(len(split.test.items)):
        history = [run.items[row] for row in split.test.inputs.row(index)]
        target = run.items[split.test.items[index]]
        (row,) = run.recommend_rows([("u", history)], k=len(run.items))
        if ranks.greater[index] == MISS:
            assert target in history and target not in row["items"]
        elif ranks.equal[index] == 0:
            assert row["items"].index(target) == ranks.greater[index]
            compared += 1
    assert compared > 30


def test_pairs_and_rows_keep_order_and_repeated_users(run: Run) -> None:
    pairs = [("b", ["i1"]), ("a", ["i2"]), ("b", ["i2"]), ("c", []), ("a", ["i2"])]
    rows = list(run.recommend_rows(pairs, 3))
    assert [row["user"] for row in rows] == ["b", "a", "b", "c", "a"]
    assert rows[1]["items"] == rows[2]["items"] == rows[4]["items"] != rows[0]["items"]
    assert run.recommend(iter(pairs[:2]), 3) == run.recommend({"b": ["i1"], "a": ["i2"]}, 3)
    assert list(run.recommend_rows([], 3)) == []


def test_more_histories_than_are_scored_at_a_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [(f"u{n}", [f"i{n % 25}", f"i{n % 7}"][: n % 3]) for n in range(50)]
    at_once = list(run.recommend_rows(histories, 4))
    monkeypatch.setattr("seqrec.run._CHUNK", 7)
    in_parts = list(run.recommend_rows(histories, 4))
    assert [row["items"] for row in in_parts] == [row["items"] for row in at_once]
    assert len(at_once) == 50


def test_a_history_without_a_known_item_gets_popularity(run: Run, split: Split) -> None:
    counts = np.bincount(split.train.values, minlength=len(run.items))
    order = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    histories = [("empty", []), ("strange", ["x", "y"]), ("known", ["x", "i1"])]
    empty, strange, known = run.recommend_rows(histories, 6)
    wanted = [run.items[item] for item in order[:6]]
    assert empty == {
        "user": "empty",
        "items": wanted,
        "scores": [float(counts[item]) for item in order[:6]],
        "fallback": "popularity",
    }
    assert strange == empty | {"user": "strange", "unknown": 2}
    assert known["unknown"] == 1 and "fallback" not in known
    everything, the_rest = run.recommend_rows([("empty", []), ("known", ["i1"])], 10**12)
    assert sorted(everything["items"]) == sorted(run.items)
    assert sorted(the_rest["items"]) == sorted({*run.items} - {"i1"})


def test_a_history_of_everything_leaves_nothing_and_is_no_fallback(run: Run) -> None:
    (row,) = run.recommend_rows([("all", run.items)], 5)
    assert row == {"user": "all", "items": [], "scores": []}


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_item_is_refused(run: Run, k: int) -> None:
    with pytest.raises(UsageError, match=f"k is {k}"):
        run.recommend({"a": ["i1"]}, k)


def test_how_many_may_be_numpys_integer_but_no_fraction(run: Run) -> None:
    asked = {"you": ["i1", "i2"]}
    assert run.recommend(asked, np.int64(3)) == run.recommend(asked, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        run.recommend(asked, 2.0)  # type: ignore[arg-type]


def test_a_history_that_is_one_text_is_refused(run: Run) -> None:
    """Else it would be read letter by letter, and answered with popularity."""
    with pytest.raises(UsageError, match="'i1'"):
        run.recommend({"a": "i1"})


def test_numbers_as_ids_are_their_text(tmp_path: Path) -> None:
    run = trained({1: [10, 11, 12, 13], 2: [11, 12, 13, 10], 3: [13, 12, 11]}, tmp_path / "run")
    assert run.items == ["10", "11", "12", "13"]
    assert run.recommend({"x": [10, 11]}, 2) == run.recommend({"x": ["10", "11"]}, 2)  # type: ignore[list-item]


def test_the_command_gives_a_line_a_line_and_counts_what_it_does_not_know(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("ann i1 i2\nbob x y z\nann i1\n\nempty\n")
    out = tmp_path / "out.jsonl"
    asked = [str(run.directory), "--input", str(tmp_path / "in.txt"), "--k", "3"]
    assert main(["recommend", *asked]) == 0
    printed, said = capsys.readouterr()
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["user"] for row in rows] == ["ann", "bob", "ann", "empty"]
    assert ["fallback" in row for row in rows] == [False, True, False, True]
    for row in rows:
        assert row.keys() - {"fallback"} == {"user", "items", "scores"}
        assert len(row["items"]) == len(row["scores"]) == 3
    assert "skipped 3 items" in said and len(said.splitlines()) == 1
    assert main(["recommend", *asked, "--out", str(out)]) == 0
    assert out.read_text() == printed


def test_neither_data_nor_its_place_is_needed_to_recommend(run: Run, tmp_path: Path) -> None:
    """The directory alone, moved elsewhere, without what only training needs."""
    moved = Path(shutil.copytree(run.directory, tmp_path / "moved"))
    shutil.rmtree(moved / "state")
    shutil.rmtree(moved / "ranks")
    (moved / "log.jsonl").unlink()
    text = (moved / "config.toml").read_text().replace("log.txt", "gone.txt")
    (moved / "config.toml").write_text(text)
    histories = {"a": ["i1", "i2"]}
    assert seqrec.load(moved).recommend(histories) == run.recommend(histories)
    assert seqrec.recommend(moved, histories, 10) == run.recommend(histories)
    assert seqrec.load(moved).result == run.result


# Evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
def test_evaluate_under_a_tie_rule_is_what_the_kept_ranks_give(run: Run, ties: str) -> None:
    found = run.evaluate(ties=ties)
    for part in ("valid", "test"):
        kept = Ranks.load(run.directory / "ranks" / f"{part}.npz")
        assert found["metrics"][part] == kept.metrics((5, 10, 20), ties)
    assert found["protocol"]["id"] == f"leave-one-out/exclude/{ties}"


def test_evaluate_gives_again_what_the_result_holds(run: Run) -> None:
    found = run.evaluate()
    for name in ("metrics", "protocol", "baselines"):
        assert found[name] == run.result[name]
    for also in run.result["also"]:
        found = run.evaluate(seen=also["protocol"]["seen"])
        assert found["metrics"] == also["metrics"]
        assert found["protocol"] == also["protocol"]
        assert found["baselines"] != run.result["baselines"]


def test_the_kept_ranks_are_a_brute_force_count(run: Run, split: Split) -> None:
    """The whole way from file to rank again: weights, scores, seen items, one user at a time."""
    method, counts = read_model(run.directory, run.config, len(run.items), torch.device("cpu"))
    assert counts.tolist() == np.bincount(split.train.values, minlength=len(run.items)).tolist()
    for part in ("valid", "test"):
        targets = getattr(split, part)
        kept = Ranks.load(run.directory / "ranks" / f"{part}.npz")
        assert kept.users.tolist() == targets.users.tolist()
        for index, target in enumerate(targets.items.tolist()):
            history = targets.inputs.row(index).tolist()
            if target in history:
                assert kept.greater[index] == MISS
                continue
            batch = SequenceStore(Jagged.from_lists([history])).batch(np.array([0]), 6)
            with torch.no_grad():
                scores = (method.items() @ method.queries(batch)[0]).tolist()
            better = [s > scores[target] for v, s in enumerate(scores) if v not in history]
            assert abs(sum(better) - kept.greater[index]) <= 1  # a tie but for rounding


def test_evaluate_changes_nothing_in_the_directory(run: Run) -> None:
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    run.evaluate(seen="include", ties="optimistic")
    run.recommend({"a": ["i1"]})
    after = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("rule", [{"seen": "all"}, {"ties": "luck"}])
def test_a_rule_there_is_not_is_refused(run: Run, rule: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(rule.values()))):
        run.evaluate(**rule)


# Runs that are not finished, or damaged -----------------------------------------------------------


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.directory, tmp_path / "run"))


def test_an_unfinished_run_says_so(copy: Path) -> None:
    (copy / "result.json").unlink()
    half = seqrec.load(copy)
    with pytest.raises(UsageError, match=r"not finished.*seqrec resume"):
        _ = half.result
    assert half.recommend({"a": ["i1"]}, 2)  # there are weights already
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no weights yet.*seqrec resume"):
        seqrec.load(copy).recommend({"a": ["i1"]}, 2)
    with pytest.raises(UsageError, match="no run in"):
        seqrec.load(copy / "elsewhere")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
@pytest.mark.parametrize("name", ["model.safetensors", "items.txt", "result.json"])
def test_a_damaged_file_is_named_in_one_line(
    copy: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "in.txt").write_text("a i1 i2 i3\n")
    if name == "result.json":
        with pytest.raises(UsageError, match=name):
            _ = seqrec.load(copy).result
        return
    assert main(["recommend", str(copy), "--input", str(tmp_path / "in.txt")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(copy) in said[0] and "resume" in said[0]


def test_resuming_a_run_with_a_damaged_result_is_one_line_and_brings_it_back(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "result.json").read_text())["metrics"]
    (copy / "result.json").write_text("{")
    assert main(["resume", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be read" in line and "remove it" in line
    (copy / "result.json").unlink()
    assert main(["resume", str(copy)]) == 0
    assert json.loads((copy / "result.json").read_text())["metrics"] == metrics


def test_item_ids_that_do_not_fit_the_weights_are_named_by_their_shapes(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "items.txt").write_text("i1\n")
    (tmp_path / "in.txt").write_text("a i1 i2 i3\n")
    assert main(["recommend", str(copy), "--input", str(tmp_path / "in.txt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "size mismatch for encoder.table" in line
