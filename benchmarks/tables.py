"""The tables of README.md and docs/*.md, from the results under ``benchmarks/results/``.

No figure of theirs is typed: ``make readme`` writes them, and a test compares.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")

# folder below benchmarks/results, and the command whose runs (one a seed) stand in it
TRAINED = {
    "sasrec-tuned-beauty": "seqrec train sasrec --data Beauty.txt --preset tuned-beauty",
    "sasrec-beauty": "seqrec train sasrec --data Beauty.txt",
    "sasrec-toys": "seqrec train sasrec --data Toys_and_Games.txt",
    "sasrec-ml-1m": "seqrec train sasrec --data ml-1m.txt --epochs 2",
}

# with the authors' settings and under their protocol; beside each the paper's HR@10 and NDCG@10
# for that method (FENRec, AAAI 2025, Table 1)
OFFICIAL = {
    "sasrec-official-beauty": ("seqrec train sasrec", ".0580/.0304"),
    "icsrec-official-beauty": ("seqrec train icsrec", ".0936/.0569"),
    "fenrec-official-beauty": ("seqrec train fenrec", ".1019/.0608"),
}

# name of a table in docs/, and where the kept runs in it lie, below benchmarks/results
COMPARED = {
    "synthetic": ("study/synthetic/*",),
    "Beauty": ("study/Beauty/*",),
    "Toys_and_Games": ("study/Toys_and_Games/*",),
    "ml-100k": ("study/ml-100k/*",),
    "r2ns-beauty": ("r2ns-beauty/*",),
    "bfloat16": tuple(
        f"{place}/{method}"
        for method in ("sasrec", "fenrec")
        for place in ("study/Beauty", "bfloat16/Beauty")
    ),
}

# runs of a few epochs on two threads, and the seconds that issue an epoch should take
EPOCHS = RESULTS / "epochs-2-threads"
GOALS = {"sasrec": 4.0, "fenrec": 24.0}


def compared(name: str) -> str:
    """What ``seqrec compare`` prints of kept runs, its headings two levels deeper."""
    from seqrec.comparison import compare, text

    runs = [
        path for place in COMPARED[name] for path in sorted(RESULTS.glob(f"{place}/*/result.json"))
    ]
    tables = compare([str(path.parent) for path in runs])
    return text.render(tables, "md").replace("### ", "##### ").rstrip()


def epochs() -> str:
    """Seconds of whole epochs, clusters and validation included, against what they should take."""
    from seqrec.training.journal import read_journal

    lines = [
        "| method, precision | s an epoch | of these clusters | validation | goal | met | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    machines = set()
    for run in sorted(EPOCHS.glob("*/result.json")):
        result = json.loads(run.read_text())
        found = [e for e in read_journal(run.with_name("log.jsonl")) if e["event"] == "epoch"]
        seconds = [e["seconds"] + e["valid_seconds"] for e in found]
        goal = GOALS[result["method"]]
        cells = [
            run.parent.name.replace("-", ", "),
            ", ".join(f"{s:.1f}" for s in seconds),
            ", ".join(f"{e['prepare_seconds']:.1f}" for e in found),
            f"{statistics.median(e['valid_seconds'] for e in found):.1f}",
            f"under {goal:.0f}",
            _met(seconds, goal),
            result["commit"][:8],
        ]
        lines.append(f"| {' | '.join(cells)} |")
        machines.add(f"{result['hardware']['threads']} threads of {result['hardware']['cpu']}")
    return "\n".join([*lines, "", "; ".join(sorted(machines))])


def _met(seconds: list[float], goal: float) -> str:
    under = sum(s < goal for s in seconds)
    return (
        "yes" if under == len(seconds) else "no" if under == 0 else f"in {under} of {len(seconds)}"
    )


def quoted(path: Path) -> str:
    """A kept text as it is."""
    return f"```\n{path.read_text().rstrip()}\n```"


def peers() -> str:
    """What ``benchmarks.peers`` has found."""
    from .peers import table

    return table(json.loads((RESULTS / "2026-11-21-cpu-peers" / "result.json").read_text()))


def official() -> str:
    """Test figures of the kept runs with the authors' settings, and how far each was trained.

    What a run has changed of its preset stands in its command.
    """
    from seqrec import rundir

    lines = [
        "| `--data Beauty.txt --preset official-beauty` | HR@5 | HR@10 | HR@20 | NDCG@5 | NDCG@10 "
        "| NDCG@20 | the paper's HR@10/NDCG@10 | seed; best epoch, epochs run | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (command, paper) in OFFICIAL.items():
        for path in sorted(RESULTS.glob(f"{name}/*/result.json")):
            run = json.loads(path.read_text())
            assert run["protocol"]["id"] == "leave-one-out/zero/mean", path
            test = run["metrics"]["test"]
            figures = [_short(test[f"{kind}@{k}"]) for kind in ("HR", "NDCG") for k in (5, 10, 20)]
            epochs = f"{run['seed']}; {run['best_epoch']}, {run['epochs_run']}"
            changed = rundir.read_config(path.parent).changed() or {}
            words = " ".join([command, *(f"--set {key}={value}" for key, value in changed.items())])
            cells = [f"`{words}`", *figures, paper, epochs, run["commit"][:8]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained() -> str:
    """Test figures of the kept runs, a row a command, the rulers of the same split beside them."""
    lines = [
        "| command | HR@10 | NDCG@10 | item-to-item | popularity | seeds, best epochs | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    machines: set[str] = set()
    for name, command in TRAINED.items():
        runs = [
            json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{name}/*/result.json"))
        ]
        first = runs[0]
        rulers = [
            "/".join(_short(first["baselines"][ruler]["test"][metric]) for metric in _SHOWN)
            for ruler in ("item-to-item", "popularity")
        ]
        figures = [_mean([run["metrics"]["test"][metric] for run in runs]) for metric in _SHOWN]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        epochs = ", ".join(str(run["best_epoch"]) for run in runs)
        commits = ", ".join(sorted({run["commit"][:8] for run in runs}))
        cells = [f"`{command}`", *figures, *rulers, f"{seeds}; {epochs}", commits]
        lines.append(f"| {' | '.join(cells)} |")
        machines |= {
            f"{run['hardware']['cpu']}, {run['hardware']['threads']} thread, "
            f"torch {run['versions']['torch']}"
            for run in runs
        }
    return "\n".join([*lines, "", "; ".join(sorted(machines))])


_SHOWN = ("HR@10", "NDCG@10")


def _mean(values: list[float]) -> str:
    """Mean, and over several seeds the standard deviation."""
    if len(values) == 1:
        return _short(values[0])
    return f"{_short(statistics.mean(values))} ± {_short(statistics.stdev(values))}"


def _short(value: float) -> str:
    """.0564, as the field prints them."""
    return f"{value:.4f}".removeprefix("0")


def kernels(path: Path) -> str:
    """Ours and its rivals at the papers' sizes, and who beats us anywhere in that result.

    What ``benchmarks.ten_million`` has written beside that file, if it has, is told below.
    """
    found: dict[str, Any] = json.loads(path.read_text())
    lines = ["| case | ours | rivals: times as long, peak memory |", "|---|---|---|"]
    for case, entry in found["cases"].items():
        if not entry["correct"]:
            raise ValueError(f"{path}: {case} is not correct; it has no speed")
        if entry.get("group", "paper") != "paper":
            continue
        peaks = entry["peak_mib"]
        ours = f"{_ms(entry['milliseconds']['ours']['median'])}, {_mib(peaks['ours'])}"
        rivals = (f"{n} {x:.2f}x, {_mib(peaks[n])}" for n, x in entry["ratio_to_ours"].items())
        lines.append(f"| {case} | {ours} | {'; '.join(rivals)} |")
    many = _many_items(path.with_name("ten_million.json"))
    return "\n".join([*lines, "", *_beaten(found["cases"]), "", source(found), *many])


def source(found: dict[str, Any]) -> str:
    """Where a result is from."""
    place = f"{found['processor']}, {found['instructions']}, {found['threads']} thread"
    commit = (found["commit"] or "unknown")[:8]
    return f"{place}; torch {found['versions']['torch']}, commit {commit}; `{found['command']}`"


def _many_items(path: Path) -> list[str]:
    """One call of each operator on many items: seconds, and the whole process' memory."""
    if not path.is_file():
        return []
    found: dict[str, Any] = json.loads(path.read_text())
    told = []
    for name, call in found["calls"].items():
        if call["reason"]:
            raise ValueError(f"{path}: {name} is {call['reason']}")
        told.append(f"{name} {call['seconds']:.1f} s, {call['resident_gb']:.1f} GB")
    shape = f"{found['items']:,} items of width {found['dim']} ({found['items_gb']:.1f} GB)"
    return [
        "",
        f"One call on {shape} for {found['rows']} rows, CPU time of one thread and resident memory "
        f"of the whole process: {'; '.join(told)}. Commit {found['commit'][:8]}, "
        f"`{found['command']}`",
    ]


def training_steps(found: dict[str, Any]) -> str:
    """Ours and the published form of every training step in a result of ``benchmarks.run``.

    Seconds are of an epoch's steps alone: clusters, where a method has them, and the validation
    are in neither.
    """
    lines = [
        "| training step | ours | published form, dense | times as long | steps an epoch "
        "| s an epoch: ours | dense | peak memory: ours | dense |",
        "|---" * 9 + "|",
    ]
    for case, entry in found["cases"].items():
        if not entry["correct"] or "steps_an_epoch" not in entry:
            continue
        steps = entry["steps_an_epoch"]
        both = [entry["milliseconds"][side]["median"] for side in ("ours", "dense")]
        cells = [
            case,
            *map(_ms, both),
            f"{entry['ratio_to_ours']['dense']:.1f}x",
            str(steps),
            *(f"{steps * ms / 1e3:.1f}" for ms in both),
            *(_mib(entry["peak_mib"][side]) for side in ("ours", "dense")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(found)])


def side_by_side(found: dict[str, Any]) -> str:
    """A result of ``benchmarks.run`` as one table of text, a line for everything that was timed."""
    cases = {name: entry for name, entry in found["cases"].items() if entry["correct"]}
    head = ["what", "ms", "wall ms", "times ours", "MiB", "% of bound"]
    rows: list[list[str]] = []
    for name, entry in cases.items():
        rows += [[name], *_rows(entry)]
    widths = [max(len(row[i]) for row in [head, *rows] if len(row) > 1) for i in range(len(head))]
    lines = [_columns(head, widths)]
    lines += [row[0] if len(row) == 1 else _columns(row, widths) for row in rows]
    reasons = {
        f"without {name}: {why}": None
        for entry in cases.values()
        for name, why in entry["left_out"].items()
    }
    wrong = [
        f"NOT TIMED {name}: {e['reason']}" for name, e in found["cases"].items() if not e["correct"]
    ]
    return "\n".join([*lines, "", *_beaten(cases), *reasons, *wrong, *found["not_run"]])


def _rows(entry: dict[str, Any]) -> list[list[str]]:
    """A case's lines: ours with its share of the machine's bound, then the rivals."""
    walls = entry.get("wall_milliseconds", {})
    rows = []
    for name, times in entry["milliseconds"].items():
        ours = name == "ours"
        rows.append(
            [
                f"  ours ({entry['dispatch']})" if ours else f"  {name}",
                f"{times['median']:.2f}",
                f"{walls[name]:.2f}" if name in walls else "",
                "" if ours else f"{entry['ratio_to_ours'][name]:.2f}",
                _mib(entry["peak_mib"][name]).removesuffix(" MiB"),
                f"{100 * entry['bound']['share']:.0f}" if ours else "",
            ]
        )
    return rows


def _columns(row: list[str], widths: list[int]) -> str:
    first, *rest = (
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def _beaten(cases: dict[str, Any]) -> list[str]:
    """Whatever beats us on some shape, named: in speed, and in peak memory."""
    faster: dict[str, list[str]] = {}
    smaller: dict[str, list[str]] = {}
    for case, entry in cases.items():
        peaks = entry["peak_mib"]
        for name, ratio in entry["ratio_to_ours"].items():
            if ratio < 1:
                faster.setdefault(name, []).append(f"{ratio:.2f}x ({case})")
            if None not in (peaks[name], peaks["ours"]) and peaks[name] < peaks["ours"]:
                both = f"{_mib(peaks[name]).removesuffix(' MiB')} against {_mib(peaks['ours'])}"
                smaller.setdefault(name, []).append(f"{both} ({case})")
    lines = []
    for title, where in (("Faster than ours", faster), ("Less memory than ours", smaller)):
        named = "; ".join(f"{name} {', '.join(cases)}" for name, cases in where.items())
        lines.append(f"{title}: {named or 'none of these'}.")
    return lines


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 9.95 else f"{value:.2g} ms"


def _mib(value: float | None) -> str:
    """Three digits are what is measured."""
    if value is None:
        return "? MiB"
    return f"{value:.0f} MiB" if value >= 99.5 else f"{value:.1f} MiB"
