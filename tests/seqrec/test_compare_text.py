"""What `compare` prints parses, and what it draws is the log."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import seqrec
from seqrec import cli
from seqrec.comparison import text
from seqrec.comparison.runs import read

# Text --------------------------------------------------------------------------------------------


def test_csv_holds_every_figure_in_full(runs: dict[str, Path]) -> None:
    tables = seqrec.compare(list(runs.values()))
    lines = list(csv.DictReader(io.StringIO(text.render(tables, "csv"))))
    keys = ("protocol", "data", "sha256", "row", "part", "metric")
    told = {tuple(line[key] for key in keys): line for line in lines}
    assert len(told) == len(lines) == sum(2 * 9 * len(table.rows) for table in tables)
    for table in tables:
        card = (table.protocol["id"], table.source, table.data["sha256"])
        for row in table.rows:
            for name, figure in row.metrics["test"].items():
                line = told[(*card, row.label, "test", name)]
                assert float(line["mean"]) == figure.mean and int(line["n"]) == figure.n
                assert line["deviation"] == str(figure.deviation or "")
                assert line["seeds"] == " ".join(map(str, row.seeds))
                found = row.differences.get(name)
                ends = (found.value, found.low, found.high) if found else ("", "", "")
                assert [line[key] for key in ("difference", "low", "high")] == list(map(str, ends))
                assert line["reference"] == (table.reference if found else "")
    assert [table.source for table in tables][-1].endswith(" min_user=6")


def test_markdown_has_as_many_cells_in_every_line(runs: dict[str, Path]) -> None:
    tables = seqrec.compare(list(runs.values()))
    parts = text.render(tables, "md").split("### ")[1:]
    assert len(parts) == len(tables)
    for part, table in zip(parts, tables, strict=True):
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert len({len(line) for line in cells}) == 1 and len(lines) == 2 + len(table.rows)
        assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in cells[1])
        assert [line[0] for line in cells[2:]] == [row.label for row in table.rows]
        place = cells[0].index("HR@10")
        shown = [float(line[place].split(" ")[0]) for line in cells[2:]]
        means = [row.metrics["test"]["HR@10"].mean for row in table.rows]
        assert shown == pytest.approx(means, abs=5.1e-5)
        for note in table.notes:
            assert f"- {note}" in part.splitlines()


def test_latex_is_escaped_and_whole(runs: dict[str, Path]) -> None:
    tables = seqrec.compare([runs["wide"], runs["seed-0"], runs["seen"]])
    source = text.render(tables, "tex")
    for table, part in zip(tables, source.split("\\end{tabular}")[:-1], strict=True):
        columns = part.split("\\begin{tabular}{")[1].split("}")[0]
        rows = [line for line in part.splitlines() if line.endswith(" \\\\")]
        assert len(rows) == 1 + len(table.rows)
        assert {len(row.split(" & ")) for row in rows} == {len(columns)}
        for line in part.splitlines():
            if not line.startswith("%"):
                bare = line.partition("  % ")[0].replace("\\%", "").replace("\\_", "")
                assert not set(bare.replace("\\begin{tabular}", "")) & set("%_#~^±")
    assert text._escaped("a_b 5% -0.01 [+0.1, -0.2] x-1") == (
        r"a\_b 5\% $-0.01$ [$+0.1$, $-0.2$] x-1"
    )


def test_notes_of_csv_go_to_stderr(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(runs["wide"]), str(runs["seed-0"]), "--format", "csv"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("protocol,data,") and "Differences are to" not in out
    assert "seqrec: Differences are to" in err and "paired bootstrap over" in err


# Curves ------------------------------------------------------------------------------------------


def test_a_resumed_log_gives_every_epoch_once(copied: Callable[[str, str], Path]) -> None:
    from seqrec.comparison.plot import curve

    directory = copied("seed-0", "resumed")
    log = directory / "log.jsonl"
    straight = curve(read(directory), "NDCG@10")
    lines = log.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (two,) = (i for i, e in enumerate(events) if e["event"] == "epoch" and e["epoch"] == 2)
    dead = {**events[two], "seconds": 50.0, "valid": {"NDCG@10": 0.9}}
    resumed = json.dumps({"event": "resume", "epoch": 1, "step": 9})
    torn = '{"event": "epoch", "epo'
    log.write_text("\n".join([*lines[:two], json.dumps(dead), torn, resumed, *lines[two:]]) + "\n")
    epochs, seconds, values = curve(read(directory), "NDCG@10")
    assert epochs == [1, 2, 3] and (epochs, seconds, values) == straight
    assert seconds == sorted(seconds) and seconds[-1] < 50


def test_the_picture_shows_every_seed_and_both_rulers(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    from seqrec.comparison import plot

    drawn = []
    write = figures.Figure.savefig
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), write(self, *a, **k))
    )
    tables = seqrec.compare([runs["seed-0"], runs["seed-5"], runs["wide"], runs["seen"]])
    out = tmp_path / "curves.png"
    plot.draw(tables, out)
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    (figure,) = drawn
    assert len(figure.axes) == 2 * len(tables)
    for table, part in zip(tables, figure.subfigs, strict=True):
        left, right = part.axes
        assert table.source in left.get_title(loc="left")
        assert table.protocol["id"] in left.get_title(loc="left")
        members = [run for row in table.rows for run in row.runs]
        for panel, x in ((left, 0), (right, 1)):
            curves = [line for line in panel.lines if len(line.get_xdata()) == 3]
            for run, line in zip(members, curves, strict=True):
                expected = plot.curve(run, table.metric)
                assert list(line.get_xdata()) == expected[x]
                assert list(line.get_ydata()) == expected[2]
            level = {round(line.get_ydata()[0], 9) for line in panel.lines}
            for row in table.rows[-2:]:
                assert round(row.metrics["valid"][table.metric].mean, 9) in level
        (key,) = part.legends
        legend = [entry.get_text() for entry in key.get_texts()]
        assert legend == [row.label for row in table.rows if row.runs]


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_equal_runs_give_equal_pictures(runs: dict[str, Path], tmp_path: Path, form: str) -> None:
    pytest.importorskip("matplotlib")
    contents = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{form}"
        assert cli.main(["compare", str(runs["wide"]), "--plot", str(path)]) == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] and len(contents[0]) > 2000


def test_without_matplotlib_it_says_how_to_get_it(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["compare", str(runs["wide"]), "--plot", str(tmp_path / "x.png")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "matplotlib is not installed" in err and 'pip install "seqrec[plot]"' in err
