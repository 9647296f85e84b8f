"""What each command takes, does, and says about itself.

A command is one class: its texts, its arguments and `run`.  The parser and the exit status are
:mod:`seqrec.cli`'s.  `run` imports what it needs, so that ``--help`` needs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from seqrec.errors import UsageError
from seqrec.keys import alternatives

EXIT_CODES = """\
exit status:
  0    done
  2    a mistake in command, configuration or data: one line on stderr, nothing created or lost
  130  Ctrl-C
  1    anything else; SEQREC_DEBUG=1 shows the traceback
"""


class Command:
    """One command of ``seqrec``."""

    name: str
    summary: str  # half a line, in `seqrec --help`
    description: str
    examples: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what the command takes."""

    def more(self) -> str:
        """What its --help says behind the arguments."""
        return f"examples:\n{self.examples}"

    def run(self, args: argparse.Namespace) -> None:
        """Do it, printing results to stdout."""
        raise NotImplementedError


class Train(Command):
    name = "train"
    summary = "train a recommender on a log"
    description = """\
Train METHOD on a log, keep the weights of the best validation epoch, and evaluate them
once on the held-out test events, against every item, beside two counting baselines.
Command, configuration and data are checked before anything is created."""
    examples = """\
  seqrec train sasrec --data synthetic --epochs 30 --out runs/demo
  seqrec train sasrec --data events.csv --out runs/one
  seqrec train sasrec --data events.csv --out runs/two --set encoder.dim=128 training.lr=0.002
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from seqrec.methods import METHODS

        add = parser.add_argument
        add("method", metavar="METHOD", help=f"the method: {alternatives(METHODS)}")
        add(
            "--data",
            metavar="FILE",
            type=_name,
            required=True,
            help="the log: text, CSV, RecBole's .inter or Parquet; or synthetic, a log whose best "
            "possible metrics are known",
        )
        add("--out", metavar="DIR", required=True, type=_path, help="run directory, new or empty")
        add("--preset", metavar="NAME", help="a shipped setting; official or tuned: for this data")
        add("--config", metavar="FILE.toml", type=_path, help="tables with the keys listed below")
        add(
            "--set",
            metavar="key=value",
            dest="sets",
            nargs="+",
            action="extend",
            default=[],
            help="any key listed below",
        )
        add("--epochs", metavar="N", type=_whole(1), help="training.epochs")
        add("--max-steps", metavar="N", type=_whole(0), help="training.max_steps")
        add("--device", metavar="NAME", type=_choice("auto", "cpu", "cuda"), help="auto, cpu, cuda")
        add("--seed", metavar="N", type=_whole(0), help="training.seed")
        add("--overwrite", action="store_true", help="replace the run that DIR holds")
        add("--dry-run", action="store_true", help="check everything, say what would run, stop")

    def more(self) -> str:
        from seqrec.config import settable
        from seqrec.methods import METHODS
        from seqrec.preset import own_defaults, preset_names

        keys = {key.name: key for key in settable()}
        lines = [
            "configuration: defaults < the method's own < preset < --config < --set < named flags",
            "(--dry-run prints what they come to)",
        ]
        for key in keys.values():
            values = f": {key.allowed}" if key.kind is str and key.rule else ""
            readers = key.samplers or key.methods
            only = f" ({', '.join(readers)})" if readers else ""
            lines.append(f"  {key.name:<26} {_typed(key.default):<14} {key.help}{values}{only}")
        lines.append("\nwhat the methods' own defaults change:")
        for method in METHODS:
            own = [
                f"{name}={_typed(value)}"
                for name, value in own_defaults(method).items()
                if value != keys[name].default
            ]
            lines += _wrapped(method, own)
        lines.append("\npresets:")
        for method in METHODS:
            lines += _wrapped(method, preset_names(method))
        return super().more() + "\n" + "\n".join(lines) + "\n"

    def run(self, args: argparse.Namespace) -> None:
        from seqrec.config import check_method

        check_method(args.method)  # known before torch is: importing it takes seconds
        from seqrec import api, report

        asked = {
            name: getattr(args, name)
            for name in ("preset", "config", "sets", "epochs", "max_steps", "device", "seed")
        }
        if args.dry_run:
            print(api.dry_run(args.method, args.data, args.out, overwrite=args.overwrite, **asked))
            return
        run = api.train(args.method, args.data, args.out, overwrite=args.overwrite, **asked)
        print(report.finished(run.result, run.directory))


class Resume(Command):
    name = "resume"
    summary = "go on with a run that was stopped"
    description = """\
Go on with the run in DIR from its last saved state. The result is, byte for byte, that of a
run that was never stopped. Of a finished run it says so."""
    examples = "  seqrec resume runs/one\n"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIR", type=_path, help="run directory")

    def run(self, args: argparse.Namespace) -> None:
        from seqrec import api, report, rundir

        finished = (args.directory / rundir.RESULT).exists()
        run = api.resume(args.directory)
        text = report.finished(run.result, run.directory)
        if finished:  # said last: a result that cannot be read is a mistake, told in one line
            print(f"seqrec: {args.directory} is finished, nothing to resume", file=sys.stderr)
        print(text)


class Evaluate(Command):
    name = "evaluate"
    summary = "evaluate a run, also under other rules"
    description = """\
Rank every item for every held-out event with the run's weights and print the figures, by
default under the rules the run was trained with. Nothing in DIR changes."""
    examples = """\
  seqrec evaluate runs/one
  seqrec evaluate runs/one --seen include --ties pessimistic
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIR", type=_path, help="run directory")
        parser.add_argument(
            "--seen",
            metavar="RULE",
            type=_choice("exclude", "include", "zero"),
            help="items of the input: exclude (no candidates), include, or zero (scored 0)",
        )
        parser.add_argument(
            "--ties",
            metavar="RULE",
            type=_choice("mean", "optimistic", "pessimistic"),
            help="how equal scores count: mean, optimistic, pessimistic",
        )

    def run(self, args: argparse.Namespace) -> None:
        from seqrec import api, report

        run = api.load(args.directory)
        found = run.evaluate(seen=args.seen, ties=args.ties)
        print(report.evaluation(found, run.config.method.name))


class Recommend(Command):
    name = "recommend"
    summary = "recommend for histories, known users or new"
    description = """\
Recommend K items for each history: one JSON object a line, in the order of the input,
  {"user": "...", "items": ["..."], "scores": [0.0]}
Items the run does not know are skipped and counted. A history without a known item gets the
most popular items and "fallback": "popularity"."""
    examples = """\
  seqrec recommend runs/one --input histories.txt --k 20 --out recommended.jsonl
  echo 'alice B001 B017' | seqrec recommend runs/one --input -
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("directory", metavar="DIR", type=_path, help="run directory")
        add(
            "--input",
            metavar="FILE|-",
            type=_name,
            required=True,
            help="what train reads; in text one history a line, `user item item ...`; - is stdin",
        )
        add("--k", metavar="K", type=_whole(1), default=10, help="items a history (10)")
        add("--out", metavar="FILE", type=_path, help="write here, whole or not at all")
        add("--include-seen", action="store_true", help="also items of the history itself")

    def run(self, args: argparse.Namespace) -> None:
        if args.out and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
            raise UsageError("no place for a file", f"--out {args.out}", "name one in a directory")
        from seqrec import api
        from seqrec.data import read_histories

        run = api.load(args.directory)
        histories = read_histories(args.input)
        with _output(args.out) as stream:
            unknown = 0
            for row in run.recommend_rows(histories, args.k, include_seen=args.include_seen):
                unknown += row.pop("unknown", 0)
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        if unknown:
            print(f"seqrec: skipped {unknown:,} items the run does not know", file=sys.stderr)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """stdout, or a file that appears under its name when it is complete."""
    if path is None:
        yield sys.stdout
        return
    if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
        with path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    from seqrec.files import replacing

    with replacing(path.resolve()) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


class Compare(Command):
    name = "compare"
    summary = "runs side by side, with seeds and intervals"
    description = """\
Put finished runs side by side: one table for each protocol and data, never a mixed one. Runs
that differ only in seed are one row. Differences to a reference row come with 95 % intervals
of a paired bootstrap over users, where the runs keep their ranks."""
    examples = """\
  seqrec compare runs/*
  seqrec compare runs/wide-* runs/narrow-* --against first --plot curves.pdf
  seqrec compare runs/* --format csv > figures.csv
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("directories", metavar="DIR", nargs="+", type=_path, help="run directories")
        add(
            "--format",
            metavar="NAME",
            type=_choice("md", "csv", "tex"),
            default="md",
            help="md (default), csv (a line a metric, every metric) or tex",
        )
        add(
            "--plot",
            metavar="FILE.png",
            type=_path,
            help="draw validation against epochs and seconds; the ending says how (png, pdf, svg)",
        )
        add(
            "--against",
            metavar="ROW",
            type=_choice("best", "first"),
            default="best",
            help="what differences are taken to: best (by validation, default) or first",
        )
        add("--metric", metavar="NAME", help="for differences and curves, by default NDCG@10")

    def run(self, args: argparse.Namespace) -> None:
        from seqrec.comparison import compare, plot, text

        if args.plot:
            plot.check(args.plot)
        tables = compare(args.directories, against=args.against, metric=args.metric)
        if args.plot:
            plot.draw(tables, args.plot)
        print(text.render(tables, args.format), end="")
        if args.format == "csv":  # notes would be no CSV
            for note in dict.fromkeys(note for table in tables for note in table.notes):
                print(f"seqrec: {note}", file=sys.stderr)


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
        parser.add_argument("file", metavar="FILE", type=_name, help="what train's --data takes")
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
        add("--device", metavar="NAME", type=_choice("cpu", "cuda"), help="cpu (default), cuda")
        add("--shapes", metavar="NAMES", help="sizes: paper (default on a CPU), wide, large, all")
        add("--dtypes", metavar="NAMES", help="float32 (default on a CPU), bfloat16")
        add("--rounds", metavar="N", type=_whole(1), help="at most so many of each")
        add(
            "--seconds",
            metavar="N",
            type=_whole(1),
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


COMMANDS: tuple[Command, ...] = (
    *(Train(), Resume(), Evaluate(), Recommend(), Compare(), Data(), Doctor(), Bench()),
)


def _typed(value: object) -> str:
    """A value as --set takes it."""
    from seqrec.keys import to_toml_value

    if isinstance(value, str):
        return value
    return to_toml_value(value).strip("[]").replace(", ", ",")


def _wrapped(name: str, words: list[str]) -> list[str]:
    """A name and what belongs to it, in lines as wide as the others."""
    head = f"  {name:<8} "
    text = " ".join(words) or "none"
    return textwrap.wrap(
        text, 100, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, at least {low}")
        return number

    return read


def _name(text: str) -> str:
    """What an unset shell variable leaves behind would otherwise name the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def _choice(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not {alternatives(names)}")
        return text

    return read
