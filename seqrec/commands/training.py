"""The commands that make a run: ``train`` and ``resume``."""

from __future__ import annotations

import argparse
import sys
import textwrap

from seqrec.commands.base import Command, choice, file_path, nonempty, whole_number
from seqrec.keys import alternatives


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
            type=nonempty,
            required=True,
            help="the log: text, CSV, RecBole's .inter or Parquet; or synthetic, a log whose best "
            "possible metrics are known",
        )
        add(
            "--out",
            metavar="DIR",
            required=True,
            type=file_path,
            help="run directory, new or empty",
        )
        add("--preset", metavar="NAME", help="a shipped setting; official or tuned: for this data")
        add(
            "--config",
            metavar="FILE.toml",
            type=file_path,
            help="tables with the keys listed below",
        )
        add(
            "--set",
            metavar="key=value",
            dest="sets",
            nargs="+",
            action="extend",
            default=[],
            help="any key listed below",
        )
        add("--epochs", metavar="N", type=whole_number(1), help="training.epochs")
        add("--max-steps", metavar="N", type=whole_number(0), help="training.max_steps")
        add("--device", metavar="NAME", type=choice("auto", "cpu", "cuda"), help="auto, cpu, cuda")
        add("--seed", metavar="N", type=whole_number(0), help="training.seed")
        add("--overwrite", action="store_true", help="replace the run that DIR holds")
        add("--dry-run", action="store_true", help="check everything, say what would run, stop")

    def more(self) -> str:
        from seqrec.config import load_config, settable
        from seqrec.methods import METHODS
        from seqrec.preset import preset_names

        keys = {key.name: key for key in settable()}
        lines = [
            "configuration: defaults < the method's own < preset < --config < --set < named flags",
            "(--dry-run prints what they come to)",
        ]
        for key in keys.values():
            values = f": {key.allowed}" if key.kind is str and key.rule else ""
            readers = [", ".join(key.methods)] * bool(key.methods)
            readers += [f"with {other} {rule.says}" for other, rule in key.when.items()]
            only = f" ({'; '.join(readers)})" if readers else ""
            lines.append(f"  {key.name:<26} {_typed(key.default):<14} {key.help}{values}{only}")
        lines.append("\nwhat the methods' own defaults change:")
        for method in METHODS:
            own = [
                f"{name}={_typed(value)}"
                for name, value in load_config(method, flags={"data.path": "-"}).read().items()
                if name in keys and value != keys[name].default
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
        parser.add_argument("directory", metavar="DIR", type=file_path, help="run directory")

    def run(self, args: argparse.Namespace) -> None:
        from seqrec import api, report, rundir

        finished = (args.directory / rundir.RESULT).exists()
        run = api.resume(args.directory)
        text = report.finished(run.result, run.directory)
        if finished:  # said last: a result that cannot be read is a mistake, told in one line
            print(f"seqrec: {args.directory} is finished, nothing to resume", file=sys.stderr)
        print(text)


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
