"""The README and the study are true: their output, their Python, their commands, their files.

Run as a program (``make readme``) it writes the demo's output and the tables of figures into both,
from the results kept under ``benchmarks/results``.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
# the tables of kept runs in each
DOCUMENTS = {
    "study.md": ("synthetic", "Beauty", "Toys_and_Games", "ml-100k"),
    "r2ns.md": ("r2ns-beauty",),
    "speed.md": ("bfloat16",),
}
DEMO = ROOT / "benchmarks" / "results" / "demo" / "result.json"
NEWER = ROOT / "benchmarks" / "results" / "2026-11-21-cpu-recall-attention" / "result.json"
KERNELS = ROOT / "benchmarks" / "results" / "2026-11-21-cpu" / "result.json"
STEPS = ROOT / "benchmarks" / "results" / "2026-11-21-cpu-steps" / "result.json"
PARTS = ROOT / "benchmarks" / "results" / "2026-11-21-cpu-where-time-goes"


def contents() -> dict[Path, dict[str, Callable[[], str]]]:
    """What stands in the marked places of each document."""
    from benchmarks import tables, time_to_quality
    from seqrec import report

    def demo() -> str:
        return f"```\n{report.finished(json.loads(DEMO.read_text()), Path('runs/demo'))}\n```"

    documents: dict[Path, dict[str, Callable[[], str]]] = {
        README: {
            "demo": demo,
            "trained": tables.trained,
            "official": tables.official,
            "peers": tables.peers,
            "kernels": partial(tables.kernels, KERNELS),
            "newer kernels": partial(tables.kernels, NEWER),
        },
        **{
            ROOT / "docs" / name: {one: partial(tables.compared, one) for one in found}
            for name, found in DOCUMENTS.items()
        },
    }
    documents[ROOT / "docs" / "speed.md"] |= {
        "epochs": tables.epochs,
        "steps": lambda: tables.training_steps(json.loads(STEPS.read_text())),
        "quality": lambda: time_to_quality.table(json.loads(STEPS.read_text())),
        "parts before": partial(tables.quoted, PARTS / "before.txt"),
        "parts after": partial(tables.quoted, PARTS / "after.txt"),
    }
    return documents


def rendered(document: Path) -> str:
    """A document with what the kept results say."""
    text = document.read_text()
    for name, content in contents()[document].items():
        block = re.compile(rf"(<!-- {name}: [^\n]*-->\n)(.*)(<!-- end of {name} -->)", re.DOTALL)
        assert block.search(text), f"{document} has no place for {name}"
        new = content()
        text = block.sub(lambda match, new=new: f"{match[1]}{new}\n{match[3]}", text)
    return text


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "document", [README, *(ROOT / "docs" / name for name in DOCUMENTS)], ids=lambda path: path.name
)
def test_every_figure_is_that_of_a_kept_result(document: Path) -> None:
    assert document.read_text() == rendered(document), "run `make readme`"


@pytest.mark.slow
def test_the_demo_still_gives_these_figures(tmp_path: Path) -> None:
    """The whole demo, as typed in the README; minutes.

    What is counted or summed on the CPU must come out the same to four digits. The model's figures
    depend on the order in which a machine's matrix products add up, so they may move a little; the
    promises of the text may not break.
    """
    import seqrec

    (command,) = [line for line in blocks("bash")[1].splitlines() if line]
    words = shlex.split(command, comments=True)
    typed = "seqrec train sasrec --data synthetic --epochs 30 --out runs/demo"
    assert words == typed.split()
    kept: dict[str, Any] = json.loads(DEMO.read_text())
    result = seqrec.train("sasrec", "synthetic", tmp_path / "run", epochs=30, progress=False).result

    assert result["data"] == kept["data"]
    for part in ("baselines", "best_possible", "oracle"):
        _same(result[part], kept[part], tolerance=1e-4)
    _same(result["metrics"]["test"], kept["metrics"]["test"], tolerance=0.02)
    reached = result["metrics"]["test"]
    assert reached["NDCG@10"] >= 0.85 * result["best_possible"]["test"]["NDCG@10"]
    assert reached["NDCG@10"] > result["baselines"]["item-to-item"]["test"]["NDCG@10"]


def _same(found: Any, kept: Any, tolerance: float) -> None:
    if isinstance(kept, dict):
        assert found.keys() == kept.keys()
        for name in kept:
            _same(found[name], kept[name], tolerance)
    else:
        assert found == pytest.approx(kept, abs=tolerance)


def test_the_three_python_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import seqrec

    monkeypatch.chdir(tmp_path)
    lines = [f"u{user},B0{(user + step) % 20:02},{step}" for user in range(40) for step in range(6)]
    Path("events.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    (code,) = (block for block in blocks("python") if "seqrec.train" in block)
    assert len(code.splitlines()) == 3
    exec(code, {"seqrec": seqrec})
    figure, recommended = capsys.readouterr().out.splitlines()[-2:]
    assert 0 <= float(figure) <= 1
    assert len(re.findall(r"'B0\d\d'", recommended)) == 10


def test_the_loss_swap() -> None:
    import torch
    import torch.nn.functional as F

    from seqrec_kernels import catalog_cross_entropy

    (code,) = (block for block in blocks("python") if "F.cross_entropy" in block)
    dense, fused = (line.partition("#")[0].strip() for line in code.splitlines())
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 101, (37,), generator=generator)
    results = []
    for line in (dense, fused):
        generator.manual_seed(1)
        h = torch.randn(37, 16, generator=generator, requires_grad=True)
        E = torch.randn(101, 16, generator=generator, requires_grad=True)
        scope: dict[str, Any] = {"F": F, "h": h, "E": E, "y": y}
        exec(line, {"catalog_cross_entropy": catalog_cross_entropy, **scope}, scope)
        results.append((scope["loss"], *torch.autograd.grad(scope["loss"], (h, E))))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


def test_every_command_is_one() -> None:
    """Each `seqrec ...` of the README parses."""
    from seqrec import cli

    commands = [
        shlex.split(line.split("|")[-1].strip(), comments=True)
        for block in blocks("bash")
        for line in block.splitlines()
        if "seqrec " in line
    ]
    assert len(commands) >= 5
    for words in commands:
        assert words[0] == "seqrec"
        assert cli._parse(words[1:]) is not None
    for name in re.findall(r"`seqrec ([a-z]+)", README.read_text()):
        assert cli._build_parser()[1][name]


def test_every_make_target_and_file_is_there() -> None:
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"make (demo|test|lint|bench|readme)\b", text):
        assert name in targets
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for benchmarks, which is not installed
    for document in contents():
        document.write_text(rendered(document))
