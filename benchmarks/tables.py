"""The README's tables, from the results kept under ``benchmarks/results/``.

No figure of the README is typed: ``make readme`` writes them, and a test compares.
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
    """Ratios of CPU time, a row a case: how many times longer each rival takes."""
    found: dict[str, Any] = json.loads(path.read_text())
    lines = ["| case | ours | times longer |", "|---|---|---|"]
    for case, entry in found["cases"].items():
        if not entry["correct"]:
            raise ValueError(f"{path}: {case} is not correct; it has no speed")
        ours = entry["milliseconds"]["ours"]["median"]
        rivals = "; ".join(f"{name} {ratio:.2f}" for name, ratio in entry["ratio_to_ours"].items())
        lines.append(f"| {case} | {ours:.0f} ms | {rivals} |")
    place = f"{found['processor']}, {found['instructions']}, {found['threads']} thread"
    versions = f"torch {found['versions']['torch']}, commit {found['commit'][:8]}"
    return "\n".join([*lines, "", f"{place}; {versions}; `{found['command']}`"])
