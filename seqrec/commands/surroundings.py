"""The commands that need no run: ``data`` looks at a log, ``doctor`` and ``bench`` at a machine."""

from __future__ import annotations

import argparse

from seqrec.commands.base import Command, choice, nonempty, whole_number


class Data(Command):
    name = "data"
    summary = "what a log holds, before training on it"
    description = """\
Read a log and say what is in it: format, users, items, events, tied times, what would be
dropped, and how many users can be evaluated."""
    examples = """\
  seqrec data events.csv
  seqrec data events.csv --set data.split=global-time data.min_item=5
  seqrec data synthetic
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=nonempty, help="what train's --data takes")
        parser.add_argument(
            "--set",
            metavar="data.KEY=VALUE",
            dest="sets",
            nargs="+",
            action="extend",
            default=[],
            help="how train would read and cut it: the [data] keys of `seqrec train --help`",
        )

    def run(self, args: argparse.Namespace) -> None:
        from seqrec.config import load_data_config
        from seqrec.data import describe
        from seqrec.run import read_data

        data = load_data_config(args.file, args.sets)
        for line in describe(read_data(data), data.split, data.split_seed, data.roles):
            print(line)


class Bench(Command):
    name = "bench"
    summary = "speed and memory of the operators on this machine"
    description = """\
Time every operator beside what else computes the same (eager torch, torch.compile, installed
peers), on the same inputs, in turns, each checked before it is timed; then print one table."""
    examples = """\
  seqrec bench
  seqrec bench catalog_rank sampled --dtypes float32,bfloat16
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("families", metavar="FAMILY", nargs="*", help="operators; all, if none is named")
        add("--device", metavar="NAME", type=choice("cpu", "cuda"), help="cpu (default), cuda")
        add("--shapes", metavar="NAMES", help="sizes: paper (default on a CPU), wide, large, all")
        add("--dtypes", metavar="NAMES", help="float32 (default on a CPU), bfloat16")
        add("--rounds", metavar="N", type=whole_number(1), help="at most so many of each")
        add(
            "--seconds",
            metavar="N",
            type=whole_number(1),
            default=300,
            help="start nothing later than that; what was left out is named (default: 300)",
        )
        add("--out", metavar="FILE", default="seqrec-bench.json", help="every figure, as JSON")

    def run(self, args: argparse.Namespace) -> None:
        from seqrec import bench

        words = [*args.families]
        for name in ("device", "shapes", "dtypes", "rounds", "seconds", "out"):
            if getattr(args, name) is not None:
                words += [f"--{name}", str(getattr(args, name))]
        bench.run(words)


class Doctor(Command):
    name = "doctor"
    summary = "versions, devices, and which kernels run where"
    description = """\
Print versions, devices and compiled parts, and for every operator which implementation runs
on this machine and why the faster ones do not."""
    examples = "  seqrec doctor\n"

    def run(self, args: argparse.Namespace) -> None:
        from seqrec import doctor

        for line in doctor.lines():
            print(line)
