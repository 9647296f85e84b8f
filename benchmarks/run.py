"""Runs families side by side and writes the figures with everything that belongs to them.

python -m benchmarks.run --out benchmarks/results/NAME/result.json [catalog_rank ...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._common import calibration, interleaved, summary, surroundings

FAMILIES = ("catalog_cross_entropy", "catalog_rank", "catalog_topk")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--out", type=Path, help="the JSON file to write; default: print only")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.families) - set(FAMILIES)):
        parser.error(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")

    result = {
        "command": shlex.join(["python", "-m", "benchmarks.run", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": 0,
        "rounds": options.rounds,
        "measure": "CPU time of the one working thread, rivals interleaved, median over rounds",
        **surroundings(),
        "gflops_before": calibration(),
        "cases": {},
    }
    for family in options.families or FAMILIES:
        for case in importlib.import_module(f"benchmarks.test_{family}").cases():
            figures = summary(interleaved(case, options.rounds))
            result["cases"][case.name] = {"correct": True, **figures}
            print(case.name, json.dumps(figures["ratio_to_ours"]), flush=True)
    result["gflops_after"] = calibration()
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
