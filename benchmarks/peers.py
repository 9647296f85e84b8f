"""SASRec here, in RecTools and in RePlay: what a step costs, and how soon each ranks well.

    python -m benchmarks.peers DATA [--out FILE.json] [--envs DIR] [--rounds 3] [--epochs 60]

DATA holds Beauty.txt (steps) and ml-100k.inter (epochs until a validation NDCG@10).  Each library
runs in an environment of its own below --envs, made by pip where it is not there yet; one that does
not install is left out and named.  What they have in common, and what the clock sees, is told in
`benchmarks.peer_sasrec`.

* Steps: a round runs each library once, in turn, for a few steps; the first steps of a process warm
  up and do not count.  Quoted are medians over the rounds.
* Quality: one run of each with the same seed; the time to a validation NDCG@10 is the CPU time of
  all epochs up to the first that reached it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ._machine import ROOT, surroundings
from .run import write

PEERS = {"rectools": "rectools[torch]", "replay": "replay-rec[torch]"}
STEPS = 4  # of an epoch of the first part, which has two: the first warms up
OURS = "seqrec"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "peers.json")
    parser.add_argument("--envs", type=Path, default=ROOT / ".peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    own = metadata.version("torch").partition("+")[0]
    parser.add_argument("--torch", default=f"torch=={own}", help="as pip takes it; this one's")
    options = parser.parse_args(arguments)

    pythons, left_out = environments(options.envs, options.torch)
    scratch = options.out.with_suffix(".part.json")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *arguments]),
        **surroundings("cpu"),
        "left_out": left_out,
        "steps": {},
        "quality": {},
    }
    beauty = ["--data", str(options.data / "Beauty.txt"), "--epochs", "2", "--steps", str(STEPS)]
    for _ in range(options.rounds):
        for name, python in pythons.items():
            found = run(python, name, beauty, scratch)
            result["steps"].setdefault(name, []).append(found)
            write(result, options.out)
    films = ["--data", str(options.data / "ml-100k.inter"), "--epochs", str(options.epochs)]
    for name, python in pythons.items():
        result["quality"][name] = run(python, name, films, scratch)
        write(result, options.out)
    scratch.unlink(missing_ok=True)
    print(table(result))
    return 0


def environments(folder: Path, torch: str) -> tuple[dict[str, str], dict[str, str]]:
    """The Python of each library, and why others are left out."""
    pythons, left_out = {OURS: sys.executable}, {}
    for name, package in PEERS.items():
        place = folder / name
        python = place / "bin" / "python"
        if not (place / "installed").exists():
            done = subprocess.run(
                f"{sys.executable} -m venv --clear {shlex.quote(str(place))} && "
                f"{shlex.quote(str(python))} -m pip install -q {torch} '{package}'",
                shell=True,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                left_out[name] = " ".join(done.stderr.split())[-300:]
                continue
            (place / "installed").touch()
        pythons[name] = str(python)
    return pythons, left_out


def run(python: str, name: str, words: list[str], out: Path) -> dict[str, Any]:
    """One library's process, one thread."""
    script = str(ROOT / "benchmarks" / "peer_sasrec.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if name == OURS:
        environment["PYTHONPATH"] = str(ROOT)
    subprocess.run(
        [python, script, name, *words, "--out", str(out)], env=environment, check=True, text=True
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def step_milliseconds(runs: list[dict[str, Any]]) -> float:
    """Median over the rounds of a step's CPU time, without the first epoch of each."""
    later = [run["epochs"][1:] for run in runs]
    return 1e3 * statistics.median(
        sum(e["cpu_seconds"] for e in epochs) / sum(e["steps"] for e in epochs) for epochs in later
    )


def time_to(run: dict[str, Any], reached: float) -> float | None:
    """CPU seconds until the validation first has that NDCG@10; None: never."""
    spent = 0.0
    for epoch in run["epochs"]:
        spent += epoch["cpu_seconds"]
        if epoch["valid NDCG@10"] >= reached:
            return spent
    return None


def best(run: dict[str, Any]) -> float:
    return max(float(epoch["valid NDCG@10"]) for epoch in run["epochs"])


def table(result: dict[str, Any]) -> str:
    """One line a library.  The NDCG@10 to be reached is nine tenths of the least of their bests."""
    steps = {name: step_milliseconds(runs) for name, runs in result["steps"].items()}
    reached = 0.9 * min(best(run) for run in result["quality"].values())
    first = result["steps"][OURS][0]
    films = result["quality"][OURS]
    lines = [
        f"| SASRec, {settings(first)} | ms a step, {first['data']}: {first['items']:,} items "
        f"| times ours | CPU s an epoch, {films['data']}: {films['items']:,} items "
        f"| CPU s until validation NDCG@10 is {reached:.4f} | times ours "
        "| best validation NDCG@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = time_to(films, reached)
    for name, run in result["quality"].items():
        spent = time_to(run, reached)
        epoch = statistics.median(e["cpu_seconds"] for e in run["epochs"])
        versions = {k: v for k, v in run["versions"].items() if k not in ("torch", "numpy")}
        label = " ".join([name, *versions.values()])
        ratio = "" if spent is None or ours is None else f"{spent / ours:.1f}x"
        cells = [
            label,
            f"{steps[name]:.0f}",
            f"{steps[name] / steps[OURS]:.1f}x",
            f"{epoch:.2f}",
            "never" if spent is None else f"{spent:.1f}",
            ratio,
            f"{best(run):.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    told = f"{result['processor']}, 1 thread; torch {first['versions']['torch']}, commit "
    told += f"{result['commit'][:8]}, seed {first['settings']['seed']}; `{result['command']}`"
    absent = [f"without {name}: {why}" for name, why in result["left_out"].items()]
    return "\n".join([*lines, "", told, *absent])


def settings(run: dict[str, Any]) -> str:
    """What all libraries were given."""
    given = run["settings"]
    names = ("dim", "layers", "heads", "dropout", "lr", "batch")
    return ", ".join(f"{name} {given[name]}" for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
