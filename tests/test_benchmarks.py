"""The suite's table says what was measured; its peers are judged; ten million items fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tables, ten_million
from benchmarks._common import Case, gated
from benchmarks._gradients import Gradients
from benchmarks.run import FAMILIES, GROUPS, parse, planned
from benchmarks.test_catalog_topk import case

RIVAL = "faiss, index at hand"


def figures(group: str, correct: bool = True, **times: float) -> dict[str, Any]:
    """An entry of a result, as far as the tables read it; a rival's peak is 8 MiB, ours 10."""
    if not correct:
        return {"group": group, "correct": False, "reason": "off by one"}
    rivals = {name.replace("_", " "): value for name, value in times.items()}
    return {
        "group": group,
        "correct": True,
        "dispatch": "native",
        "milliseconds": {
            name: {"median": value} for name, value in {"ours": 4.0, **rivals}.items()
        },
        "ratio_to_ours": {name: value / 4.0 for name, value in rivals.items()},
        "wall_milliseconds": {name: value + 1 for name, value in {"ours": 4.0, **rivals}.items()},
        "peak_mib": {"ours": 10.0, **dict.fromkeys(rivals, 12.0), "the lean": 8.0, "unknown": None},
        "bound": {"share": 0.9},
        "left_out": {"the absent": "No module named 'absent'"},
    }


def result(**cases: dict[str, Any]) -> dict[str, Any]:
    surroundings = {"processor": "a CPU", "instructions": "AVX9", "threads": 1}
    versions = {
        "versions": {"torch": "9.9"},
        "commit": "0123456789abcdef",
        "command": "python -m x",
    }
    return {**surroundings, **versions, "cases": cases, "not_run": ["late: no time"]}


def test_one_line_for_everything_that_was_timed_and_the_reason_of_what_was_not() -> None:
    text = tables.side_by_side(
        result(
            one=figures("paper", the_lean=8.0, the_slow=40.0),
            two=figures("wide", unknown=2.0),
            three=figures("wide", correct=False),
        )
    )
    lines = text.splitlines()
    rows = {line.strip().partition("  ")[0]: line.split() for line in lines if line[:2] == "  "}
    assert rows["ours (native)"][-5:] == ["(native)", "4.00", "5.00", "10.0", "90"]
    assert rows["the lean"][2:] == ["8.00", "9.00", "2.00", "8.0"]
    assert rows["the slow"][2:] == ["40.00", "41.00", "10.00", "12.0"]
    assert rows["unknown"][1:] == ["2.00", "3.00", "0.50", "?"]
    assert lines.index("one") < lines.index("two")
    assert "Faster than ours: unknown 0.50x (two)." in lines
    assert "Less memory than ours: the lean 8.0 against 10.0 MiB (one)." in lines
    assert "without the absent: No module named 'absent'" in lines
    assert "NOT TIMED three: off by one" in lines and "late: no time" in lines


def test_the_readme_shows_the_papers_sizes_and_names_who_beats_us_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    cases = {"one": figures("paper", the_slow=40.0), "two": figures("wide", the_lean=2.0)}
    path.write_text(json.dumps(result(**cases)))
    lines = tables.kernels(path).splitlines()
    assert "| one | 4 ms, 10.0 MiB | the slow 10.00x, 12.0 MiB |" in lines
    assert not any(line.startswith("| two") for line in lines)
    assert "Faster than ours: the lean 0.50x (two)." in lines
    assert "Less memory than ours: the lean 8.0 against 10.0 MiB (two)." in lines

    path.write_text(json.dumps(result(one=figures("paper", the_slow=40.0))))
    assert "Faster than ours: none of these." in tables.kernels(path).splitlines()
    path.write_text(json.dumps(result(one=figures("paper", correct=False))))
    with pytest.raises(ValueError, match="one is not correct"):
        tables.kernels(path)


def test_a_training_step_is_told_by_the_epoch_on_both_sides() -> None:
    step = {**figures("paper", dense=100.0), "steps_an_epoch": 500}
    wrong = {**figures("paper", correct=False), "steps_an_epoch": 500}
    text = tables.training_steps(result(one=step, two=wrong, three=figures("paper", dense=8.0)))
    cells = "| one | 4 ms | 100 ms | 25.0x | 500 | 2.0 | 50.0 | 10.0 MiB | 12.0 MiB |"
    assert [line for line in text.splitlines() if "ms |" in line] == [cells]
    assert (
        text.splitlines()[-1] == "a CPU, AVX9, 1 thread; torch 9.9, commit 01234567; `python -m x`"
    )


def test_the_readme_tells_what_many_items_took(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result(one=figures("paper", the_slow=40.0))))
    status, calls = many(tmp_path, 1000, 64.0)
    last = tables.kernels(path).splitlines()[-1]
    assert status == 0 and last.startswith("One call on 1,000 items of width 64 (0.0 GB) for 128")
    for name, call in calls.items():
        assert f"{name} {call['seconds']:.1f} s, {call['resident_gb']:.1f} GB" in last
    many(tmp_path, 1000, 0.01)
    with pytest.raises(ValueError, match=r"catalog_rank is above 0\.01 GB"):
        tables.kernels(path)


def test_every_size_and_width_of_the_catalogue_families_can_be_asked_for() -> None:
    asked = parse(["--shapes", "all", "--dtypes", "float32,bfloat16"])
    assert asked.shapes == [group for group in GROUPS if group != "tiny"]
    for family in (name for name in FAMILIES if name.startswith("catalog_")):
        dtypes = [torch.float32, torch.bfloat16]
        shapes = [b.args for _, _, b in planned([family], asked.shapes, "cpu", dtypes)]
        assert {dtype for _, _, dtype in shapes} == set(dtypes)
        assert {v for (_, v, _), _, _ in shapes} >= {12_101, 50_000, 100_000, 1_000_000}
        assert {d for (_, _, d), _, _ in shapes} >= {32, 64, 128, 256}


class FlatIP:
    """What faiss' exact index promises, by sorting."""

    def __init__(self, dim: int) -> None:
        self.items = np.zeros((0, dim), np.float32)

    def add(self, items: np.ndarray) -> None:
        self.items = np.concatenate([self.items, items])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.items.T
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, ids, 1), ids


class OffByOne(FlatIP):
    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = super().search(queries, k + 1)
        return scores[:, 1:], ids[:, 1:]


def with_faiss(monkeypatch: pytest.MonkeyPatch, index: type | None) -> Case:
    """The tiny case beside a faiss of this kind."""
    module = index and SimpleNamespace(IndexFlatIP=index, omp_set_num_threads=lambda n: None)
    monkeypatch.setitem(sys.modules, "faiss", module)
    return case((24, 300, 16), compiling=False)


def test_faiss_is_a_peer_where_it_is_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: dict[str, str] = {}
    assert RIVAL in gated(with_faiss(monkeypatch, FlatIP), left_out)
    assert left_out == {}
    assert RIVAL not in gated(with_faiss(monkeypatch, OffByOne), left_out)
    assert "misses the best" in left_out[RIVAL]
    absent = with_faiss(monkeypatch, None)
    assert RIVAL not in absent.rivals and "faiss" in absent.left_out[RIVAL]
    monkeypatch.undo()
    assert "float32" in case((24, 300, 16), dtype=torch.bfloat16).left_out[RIVAL]


def test_faiss_itself_gives_the_same_items() -> None:
    pytest.importorskip("faiss")
    left_out: dict[str, str] = {}
    assert RIVAL in gated(case((24, 300, 16), compiling=False), left_out), left_out


# Many items --------------------------------------------------------------------------------------


def many(tmp_path: Path, items: int, limit: float) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "ten_million.json"
    status = ten_million.main([*f"--items {items} --limit-gb {limit} --out".split(), str(out)])
    return status, json.loads(out.read_text())["calls"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_call_above_the_limit_fails(tmp_path: Path) -> None:
    status, calls = many(tmp_path, 1000, 64.0)
    assert status == 0 and [call["reason"] for call in calls.values()] == ["", "", ""]
    assert all(0 < call["resident_gb"] < 64 for call in calls.values())
    status, calls = many(tmp_path, 1000, 0.01)
    assert status == 1 and all(call["reason"] == "above 0.01 GB" for call in calls.values())


@pytest.mark.parametrize("name", ["catalog_rank", "catalog_topk", "catalog_cross_entropy"])
def test_a_wrong_result_over_many_items_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    right = getattr(ten_million, name)

    def spoiled(q: torch.Tensor, e: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return right(q.flip(0), e, *rest, **options)

    monkeypatch.setattr(ten_million, name, spoiled)
    status, calls = many(tmp_path, 1000, 64.0)
    assert status == 1
    assert [call for call, entry in calls.items() if entry["reason"].startswith("wrong")] == [name]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_tenth_of_ten_million_items_takes_a_tenth_of_8_gb(tmp_path: Path) -> None:
    """In processes of their own; what a process takes without items is not the items'."""
    import subprocess

    grown: dict[str, list[float]] = {}
    for items in (1_000, 1_000_000):
        out = tmp_path / "out.json"
        command = [sys.executable, "-m", "benchmarks.ten_million", "--items", str(items)]
        done = subprocess.run([*command, "--out", out], cwd=Path(__file__).parents[1])
        assert done.returncode == 0
        for name, call in json.loads(out.read_text())["calls"].items():
            grown.setdefault(name, []).append(call["resident_gb"])
    for name, (without, within) in grown.items():
        table = 0.9 * 0.256  # GB: the items themselves are seen
        assert table < within - without < 0.8, f"{name}: {without} and {within} GB"


def test_a_wrong_gradient_is_refused_and_none_is_left_over() -> None:
    x = torch.ones(3, requires_grad=True)
    made = Gradients(x=x)
    run = made.step(lambda y: (2 * y).sum(), x)
    for _ in range(2):  # not added up
        run()
        made.check([torch.full((3,), 2.0).double()], "ours")
    almost = [torch.full((3,), 2.0002).double()]
    made.check(almost, "a peer")
    for wrong, rival in ((almost, "ours"), ([torch.full((3,), 2.01).double()], "a peer")):
        with pytest.raises(AssertionError, match="of the gradient of x"):
            made.check(wrong, rival)
    made.clear()
    with pytest.raises(AssertionError, match="no gradient of x"):
        made.check(almost, "a peer")
