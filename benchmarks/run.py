"""Runs families side by side and writes the figures with everything that belongs to them.

python -m benchmarks.run [--shapes all] [--dtypes float32,bfloat16] [--out FILE.json] [FAMILY ...]

One table on stdout, everything in the JSON file. "ours" is the implementation that dispatch picks,
named as such; our other implementations that can run stand beside it as "seqrec NAME". The exit
status is 1 where one of ours is wrong.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from ._common import MEASURE, Case, WrongResult, dtype_name, measure
from ._machine import Machine, measured, surroundings
from .tables import side_by_side, training_steps

FAMILIES = (
    "catalog_cross_entropy",
    "catalog_rank",
    "catalog_topk",
    "contrast",
    "jagged_attention",
    "max_index_recall",
    "rerank_negatives",
    "sampled",
)
STEPS = ("training_step",)  # each method's, float32; measured where they are named
# sizes of the papers; other widths of theirs; 100,000 items; 1,000,000 items
MEASURED = ("paper", "wide", "large", "million")
GROUPS = ("tiny", *MEASURED)
PROGRAM = "python -m benchmarks.run"
OUT = Path(__file__).with_name("out") / "result.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str], program: str = PROGRAM) -> int:
    """Measure, print the table, and give the exit status.

    Args:
        arguments: as typed.
        program: what they were typed behind.
    """
    options = parse(arguments, program)
    begin = time.monotonic()
    dtypes = [DTYPES[name] for name in options.dtypes]
    small = options.shapes == ["tiny"]
    machine = measured(options.device, dtypes, small)
    result: dict[str, Any] = {
        "command": f"{program} {shlex.join(arguments)}".strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": 0,
        "device": options.device,
        "shapes": options.shapes,
        "rounds": options.rounds,
        "measure": MEASURE[options.device],
        **surroundings(options.device),
        "machine_before": machine.figures(),
        "cases": {},
        "not_run": [],
    }
    say = partial(print, file=sys.stderr, flush=True)
    for group, name, build in planned(
        options.families or FAMILIES, options.shapes, options.device, dtypes
    ):
        if options.seconds and time.monotonic() - begin > options.seconds:
            result["not_run"].append(f"{name}: the {options.seconds:g} s were used up")
            say(result["not_run"][-1])
            continue
        try:
            name, entry = timed(build, machine, options.rounds)
            say(f"{name}: ours is {entry['dispatch']}; {json.dumps(entry['ratio_to_ours'])}")
        except (WrongResult, RuntimeError) as error:  # out of memory is a RuntimeError
            entry = {"correct": False, "reason": " ".join(str(error).split())[:500]}
            say(f"{name}: NOT TIMED, {entry['reason']}")
        result["cases"][name] = {"group": group, **entry}
        write(result, options.out)  # a run that is cut short keeps what it has
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    wrong = sum(not entry["correct"] for entry in result["cases"].values())
    result["machine_after"] = measured(options.device, dtypes, small).figures()
    result["minutes"] = round((time.monotonic() - begin) / 60, 1)
    write(result, options.out)
    print(side_by_side(result))
    if any("steps_an_epoch" in entry for entry in result["cases"].values()):
        print(f"\n{training_steps(result)}")
    print(f"\nin {options.out} after {result['minutes']} minutes:")
    print(f"{len(result['cases'])} cases, {wrong} wrong, {len(result['not_run'])} not run")
    return 1 if wrong else 0


def timed(build: Callable[[], Case], machine: Machine, rounds: int) -> tuple[str, dict[str, Any]]:
    """A case's name and figures; its tensors are gone when this returns."""
    case = build()
    return case.name, measure(case, machine, rounds)


def planned(
    families: Sequence[str], groups: Sequence[str], device: str, dtypes: list[torch.dtype]
) -> Iterator[tuple[str, str, partial[Case]]]:
    """Group, name and case of what is measured, families within groups: the first matter most."""
    for group in groups:
        for dtype in dtypes:
            for family in families:
                if family in STEPS and dtype != torch.float32:
                    continue
                module = importlib.import_module(f"{__package__}.test_{family}")
                for shape in module.SHAPES.get(group, []):
                    build = partial(module.case, shape, device, dtype, compiling=group != "tiny")
                    yield group, f"{family} {shape} {dtype_name(dtype)}", build


class Mistake(Exception):
    """Arguments that cannot be; the text says which."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Mistake(message)


def parse(arguments: list[str], program: str = PROGRAM) -> argparse.Namespace:
    """The options, with what depends on the device filled in.

    Raises:
        Mistake: what is no option, or cannot run here.
    """
    parser = _Parser(prog=program, description=__doc__)
    parser.add_argument(
        "families",
        nargs="*",
        help=f"of {', '.join(FAMILIES)} (default: all of these), {', '.join(STEPS)}",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="default: benchmarks/out/result.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes",
        type=_several((*GROUPS, "all")),
        help=f"of {','.join(GROUPS)}, or all (but tiny); default: paper, on cuda all",
    )
    parser.add_argument(
        "--dtypes",
        type=_several(tuple(DTYPES)),
        help="of float32,bfloat16; default: float32, on cuda both",
    )
    parser.add_argument("--rounds", type=int, help="at most; default: 7, on cuda 30")
    parser.add_argument("--seconds", type=float, default=0, help="start no case later than that")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.families) - set(FAMILIES + STEPS)):
        parser.error(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES + STEPS)}")
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no CUDA device")
    options.shapes = options.shapes or (["all"] if cuda else ["paper"])
    if "all" in options.shapes:
        options.shapes = list(MEASURED)
    options.dtypes = options.dtypes or (["float32", "bfloat16"] if cuda else ["float32"])
    options.rounds = options.rounds or (30 if cuda else 7)
    return options


def _several(known: tuple[str, ...]) -> Any:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not of {', '.join(known)}")
        return found

    return names


def write(result: dict[str, Any], path: Path) -> None:
    """The JSON file, whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Mistake as mistake:
        print(f"{PROGRAM}: {mistake}", file=sys.stderr)
        sys.exit(2)
