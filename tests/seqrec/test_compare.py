"""`compare`: never a mixed table, honest seeds, intervals that hold, mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqrec
from seqrec import cli
from seqrec.comparison.runs import _differing_parts, by_settings, read
from seqrec.evaluation.bootstrap import paired_bootstrap
from seqrec.evaluation.ranking import Ranks

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "benchmarks" / "results"


def change_result(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


# What may stand together -------------------------------------------------------------------------


def test_protocols_and_data_never_share_a_table(runs: dict[str, Path]) -> None:
    tables = seqrec.compare(list(runs.values()))
    held = [{run.directory.name for row in table.rows for run in row.runs} for table in tables]
    assert held == [{"seed-0", "seed-5", "seed-11", "wide"}, {"seen"}, {"other"}, {"core"}]
    for table in tables:
        for row in table.rows:
            for run in row.runs:
                assert run.result["protocol"]["id"] == table.protocol["id"]
                assert run.result["data"] == table.data
    assert tables[0].protocol["id"] != tables[1].protocol["id"]
    assert tables[0].data["sha256"] != tables[2].data["sha256"]
    # the same file with users dropped is other data as well
    assert tables[0].data["sha256"] == tables[3].data["sha256"]


def test_seeds_are_one_row_with_their_mean_and_sample_deviation(runs: dict[str, Path]) -> None:
    seeds = [runs["seed-5"], runs["seed-0"], runs["seed-11"]]
    (table,) = seqrec.compare([*seeds, runs["wide"]])
    row, wide, *rulers = table.rows
    assert row.seeds == [0, 5, 11] and wide.seeds == [3]
    results = [json.loads((path / "result.json").read_text()) for path in seeds]
    for part in ("valid", "test"):
        assert row.metrics[part].keys() == results[0]["metrics"][part].keys()
        for name, figure in row.metrics[part].items():
            values = [result["metrics"][part][name] for result in results]
            assert figure.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert figure.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9)
            assert figure.n == 3
            assert wide.metrics[part][name].deviation is None
    assert any(figure.deviation for figure in row.metrics["test"].values())
    assert [ruler.label for ruler in rulers] == ["item-to-item", "popularity"]
    for ruler in rulers:
        told = {name: figure.mean for name, figure in ruler.metrics["test"].items()}
        assert told == results[0]["baselines"][ruler.label]["test"] and not ruler.differences


def test_a_row_is_named_by_no_more_than_tells_it_apart(runs: dict[str, Path]) -> None:
    (table,) = seqrec.compare([runs["seed-0"], runs["seed-5"], runs["wide"]])
    labels = [row.label for row in table.rows if row.runs]
    assert labels == ["sasrec encoder.dim=8", "sasrec encoder.dim=16"]
    (table,) = seqrec.compare([runs["seed-0"]])
    assert table.rows[0].label == "sasrec"


def test_a_row_has_the_name_of_a_preset_only_beside_what_it_changed(
    runs: dict[str, Path], copied: Callable[[str, str], Path], preset_folder: Path
) -> None:
    """Also of runs whose result says no more than the preset's name, as those of old."""
    (preset_folder / "tuned-x.toml").write_text("[encoder]\ndim = 16\n")
    paths = [copied("seed-0", "a"), copied("wide", "b")]
    for path in paths:
        config = path / "config.toml"
        config.write_text(config.read_text() + '\n[preset]\nname = "tuned-x"\n')
        change_result(
            path, lambda result: (result.pop("preset_changed"), result.update(preset="x"))
        )
    (table,) = seqrec.compare(paths)
    changed = [len(read(path).config.changed() or ()) for path in paths]
    assert changed[0] == changed[1] + 1 > 3
    labels = [row.label for row in table.rows if row.runs]
    assert labels == [f"sasrec tuned-x but {n} settings" for n in changed]


def test_rows_that_share_a_folder_keep_names_of_their_own(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many settings to tell them by, and seeds of both rows in one folder."""
    of = {"a-0": "seed-0", "a-5": "seed-5", "b-3": "wide", "b-4": "wide"}
    paths = {name: Path(shutil.copytree(runs[run], tmp_path / name)) for name, run in of.items()}
    for seed in (3, 4):
        path = paths[f"b-{seed}"]
        text = (path / "config.toml").read_text()
        for old, new in {"epochs = 3": "epochs = 4", "batch = 16": "batch = 8"}.items():
            text = text.replace(old, new)
        text = text.replace("patience = 10", "patience = 9").replace("seed = 3", f"seed = {seed}")
        (path / "config.toml").write_text(text)
        change_result(path, lambda result, seed=seed: result.update(seed=seed))
    monkeypatch.chdir(tmp_path)
    for first in (paths["a-0"], Path("a-0")):  # absolute, and relative among absolute ones
        (table,) = seqrec.compare([first, *list(paths.values())[1:]])
        one, two = (row for row in table.rows if row.runs)
        assert (one.seeds, two.seeds) == ([0, 5], [3, 4]) and one.label != two.label
        (found,) = (row.differences["NDCG@10"] for row in (one, two) if row.differences)
        assert found.value and found.low is not None and found.low < found.value < found.high


def test_one_setting_with_one_seed_twice_is_no_sample_of_seeds(
    runs: dict[str, Path], copied: Callable[[str, str], Path]
) -> None:
    again = [copied("seed-0", "a"), copied("seed-5", "b")]
    rows = by_settings([read(path) for path in (runs["seed-0"], runs["seed-5"], *again)])
    assert [[run.seed for run in row] for row in rows] == [[0, 5], [0], [5]]
    (table,) = seqrec.compare([runs["seed-0"], again[0]])
    shared = os.path.commonpath([runs["seed-0"], again[0]])
    assert [row.label for row in table.rows[:2]] == [
        f"sasrec {path.relative_to(shared)}" for path in (runs["seed-0"], again[0])
    ]


def test_what_all_directories_begin_and_end_with_names_no_row() -> None:
    assert _differing_parts(["out/a/seed-0", "out/b-c/seed-0"]) == ["a", "b-c"]
    assert _differing_parts(["/x/a", "/x/a/b"]) == ["a", "a/b"]
    assert _differing_parts(["a/b/b", "a/b"]) == ["b/b", "b"]


# Differences -------------------------------------------------------------------------------------


def test_the_bootstrap_covers_what_was_planted_as_often_as_it_says() -> None:
    """Skewed, mostly zero differences, as metrics have them, with a known mean."""
    rng = np.random.default_rng(0)
    truth, users, trials = 0.02, 400, 300
    drawn = np.where(rng.random((users, trials)) < 0.1, rng.exponential(0.2, (users, trials)), 0.0)
    low, high = paired_bootstrap(drawn, resamples=600, seed=1)
    covered = np.mean((low <= truth) & (truth <= high))
    # the standard error of the share is 0.013; skew costs the percentile interval a little
    assert 0.90 <= covered <= 0.98
    error = drawn.std(axis=0) / np.sqrt(users)
    assert np.median((high - low) / (2 * 1.96 * error)) == pytest.approx(1.0, abs=0.05)


def test_the_bootstrap_is_paired_seeded_and_blind_to_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    differences = np.stack([np.zeros(50), np.full(50, 0.25), rng.normal(size=50)], axis=1)
    low, high = paired_bootstrap(differences, resamples=200, seed=3)
    assert low[0] == high[0] == 0.0 and low[1] == high[1] == 0.25 and low[2] < high[2]
    again = paired_bootstrap(differences, resamples=200, seed=3)
    assert np.array_equal(again, (low, high))
    assert not np.array_equal(paired_bootstrap(differences, resamples=200, seed=4)[0], low)
    monkeypatch.setattr("seqrec.evaluation.bootstrap._CELLS", 50 * 7)
    assert np.allclose(paired_bootstrap(differences, resamples=200, seed=3), (low, high))
    with pytest.raises(ValueError, match="no users"):
        paired_bootstrap(np.zeros((0, 2)))


def test_identical_runs_differ_by_nothing_and_a_planted_gain_is_found(
    runs: dict[str, Path], copied: Callable[[str, str], Path]
) -> None:
    same, better = copied("seed-0", "same"), copied("seed-0", "better")
    ranks = Ranks.load(better / "ranks" / "test.npz")
    gained = np.arange(len(ranks.users)) % 2 == 0
    greater = np.where(gained, 0, ranks.greater)
    backwards = (x[::-1].copy() for x in (ranks.users, greater, ranks.equal))
    planted = Ranks(*backwards)
    planted.save(better / "ranks" / "test.npz")
    metrics = planted.metrics((5, 10, 20), "mean")
    change_result(better, lambda result: result["metrics"].update(test=metrics))

    (table,) = seqrec.compare([runs["seed-0"], same, better], against="first")
    reference, first, second, *_ = table.rows
    assert table.reference == reference.label and not reference.differences
    for found in first.differences.values():
        assert found.value == found.low == found.high == 0.0
    for name, found in second.differences.items():
        assert found.low is not None and found.high is not None
        gain = metrics[name] - reference.metrics["test"][name].mean
        assert found.value == pytest.approx(gain, rel=1e-9)
        assert 0 <= found.low < found.value < found.high
        if not name.endswith("@5"):  # in the first 20 of 25 nearly everybody was before
            continue
        assert found.low > 0
        each = np.where(gained, planted.each((5, 10, 20), "mean")[name][::-1], 0.0)
        each -= np.where(gained, ranks.each((5, 10, 20), "mean")[name], 0.0)
        error = each.std() / np.sqrt(len(each))
        assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.2)


def test_with_several_seeds_users_are_drawn_and_their_seeds_averaged(
    runs: dict[str, Path],
) -> None:
    seeds = [runs["seed-0"], runs["seed-5"], runs["seed-11"]]
    (table,) = seqrec.compare([runs["wide"], *seeds], against="first")
    row = table.rows[1]
    each = [
        Ranks.load(path / "ranks" / "test.npz").each((10,), "mean")["NDCG@10"]
        for path in (runs["wide"], *seeds)
    ]
    found = row.differences["NDCG@10"]
    paired = np.mean(each[1:], axis=0) - each[0]
    assert found.value == pytest.approx(paired.mean(), rel=1e-9)
    assert found.low is not None and found.high is not None
    error = paired.std() / np.sqrt(len(paired))
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.2)
    assert any("its mean over the row's seeds" in note for note in table.notes)


def test_the_reference_is_chosen_on_validation(
    copied: Callable[[str, str], Path], runs: dict[str, Path]
) -> None:
    """A run that is best on test alone does not become it."""
    lucky = copied("seed-0", "lucky")
    shutil.rmtree(lucky / "ranks")

    def spoil(result: dict[str, Any]) -> None:
        result["metrics"]["test"] = dict.fromkeys(result["metrics"]["test"], 0.99)
        result["metrics"]["valid"] = dict.fromkeys(result["metrics"]["valid"], 0.0)

    change_result(lucky, spoil)
    (table,) = seqrec.compare([lucky, runs["seed-0"]])
    shared = os.path.commonpath([lucky, runs["seed-0"]])
    assert table.reference == f"sasrec {runs['seed-0'].relative_to(shared)}"
    (found, *_) = table.rows
    assert found.differences["HR@10"].value > 0 and found.differences["HR@10"].low is None
    assert any(str(lucky) in note and "No interval" in note for note in table.notes)
    (table,) = seqrec.compare([lucky, runs["seed-0"]], against="first")
    assert table.reference == f"sasrec {lucky.relative_to(shared)}"


def test_kept_runs_without_ranks_still_make_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    names = ("sasrec-tuned-beauty/seed-0", "sasrec-tuned-beauty/seed-1", "sasrec-beauty/seed-0")
    directories = [str(KEPT / name) for name in names]
    assert cli.main(["compare", *directories]) == 0
    out = capfd.readouterr().out
    assert "### leave-one-out/exclude/mean on Beauty.txt (sha256 226cce9c3105)" in out
    assert (
        re.search(r"^\| sasrec tuned-beauty +\| +2 \|", out, re.M)
        and "No interval where ranks/test.npz" in out
    )


def test_ranks_are_kept_small_and_whole(runs: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "keep.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "benchmarks" / "keep.sh", script)
    environ = {**os.environ, "PYTHON": sys.executable}
    for options in (["--ranks"], []):
        name = "with" if options else "without"
        subprocess.run(["bash", script, *options, runs["wide"], name], env=environ, check=True)
    with_ranks, without = (script.parent / "results" / name for name in ("with", "without"))
    assert not (without / "ranks").exists() and (without / "log.jsonl").exists()
    for part in ("valid", "test"):
        path = Path("ranks") / f"{part}.npz"
        one, two = Ranks.load(runs["wide"] / path), Ranks.load(with_ranks / path)
        for field in ("users", "greater", "equal"):
            assert np.array_equal(getattr(one, field), getattr(two, field))
        assert (with_ranks / path).stat().st_size < (runs["wide"] / path).stat().st_size
    (table,) = seqrec.compare([with_ranks, runs["seed-0"]])
    assert all(row.differences or row.label == table.reference for row in table.rows[:2])


# Mistakes ----------------------------------------------------------------------------------------


def damage(file: str, content: bytes | None) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / file
        path.unlink() if content is None else path.write_bytes(content)

    return spoil


def other_ranks(directory: Path) -> None:
    path = directory / "ranks" / "test.npz"
    ranks = Ranks.load(path)
    Ranks(ranks.users, ranks.greater + 3, ranks.equal).save(path)


def other_users(directory: Path) -> None:
    path = directory / "ranks" / "test.npz"
    ranks = Ranks.load(path)
    Ranks(ranks.users + 1, ranks.greater, ranks.equal).save(path)


def other_kinds(directory: Path) -> None:
    change_result(directory, lambda r: r["timing"].update(train_seconds="long"))


def nothing_validated(directory: Path) -> None:
    change_result(directory, lambda r: r["metrics"].update(valid={}))


def not_a_number(directory: Path) -> None:
    change_result(directory, lambda r: r["metrics"]["test"].update({"HR@10": float("nan")}))


@pytest.mark.parametrize(
    ("spoil", "words", "options"),
    [
        (damage("result.json", None), ("the run is not finished", "seqrec resume"), []),
        (damage("result.json", b'{"metrics": '), ("cannot be read", "result.json"), []),
        (damage("result.json", b"[]"), ("the result is damaged", "result.json"), []),
        (damage("result.json", b'{"metrics": {}}'), ("the result is damaged", "test"), []),
        (other_kinds, ("the result is damaged", "timing.train_seconds is 'long'"), []),
        (nothing_validated, ("the result is damaged", "other metrics"), []),
        (not_a_number, ("no number", "result.json"), []),
        (damage("config.toml", None), ("no run in", "config.toml"), []),
        (damage("ranks/test.npz", b"PK"), ("the ranks cannot be read", "test.npz"), []),
        (other_ranks, ("of another run than result.json", "remove"), []),
        (other_users, ("of other users", "test.npz"), []),
        (lambda _: None, ("no NDCG@11", "did you mean NDCG@10"), ["--metric", "NDCG@11"]),
        (lambda _: None, ("is not md, csv or tex", "--format"), ["--format", "html"]),
        (lambda _: None, ("no picture ends in '.txt'", "--plot"), ["--plot", "x.txt"]),
        (lambda _: None, ("no place for a file", "--plot"), ["--plot", "nowhere/x.png"]),
        (damage("log.jsonl", b'{"event": "epoch"}\n'), ("log", "NDCG@10"), ["--plot", "x.png"]),
        (damage("log.jsonl", None), ("log", "without --plot"), ["--plot", "x.png"]),
    ],
)
def test_a_mistake_is_one_line(
    copied: Callable[[str, str], Path],
    runs: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
    options: list[str],
) -> None:
    if "--plot" in options:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    directory = copied("seed-0", "spoiled")
    spoil(directory)
    assert cli.main(["compare", str(runs["wide"]), str(directory), *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("seqrec: ")
    assert all(word in err for word in words) and "; " in err and "(" in err
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled"]


def test_a_run_named_twice_and_none_at_all(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(runs["wide"]), f"{runs['wide']}/"]) == 2
    assert "is named twice" in capfd.readouterr().err
    assert cli.main(["compare"]) == 2
    assert "DIR" in capfd.readouterr().err
    with pytest.raises(seqrec.UsageError, match="no run to compare"):
        seqrec.compare([])
