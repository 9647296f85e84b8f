"""The commands that read finished runs: ``evaluate``, ``recommend`` and ``compare``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from seqrec.commands.base import Command, choice, file_path, nonempty, whole_number
from seqrec.errors import UsageError


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
        parser.add_argument("directory", metavar="DIR", type=file_path, help="run directory")
        parser.add_argument(
            "--seen",
            metavar="RULE",
            type=choice("exclude", "include", "zero"),
            help="items of the input: exclude (no candidates), include, or zero (scored 0)",
        )
        parser.add_argument(
            "--ties",
            metavar="RULE",
            type=choice("mean", "optimistic", "pessimistic"),
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
        add("directory", metavar="DIR", type=file_path, help="run directory")
        add(
            "--input",
            metavar="FILE|-",
            type=nonempty,
            required=True,
            help="what train reads; in text one history a line, `user item item ...`; - is stdin",
        )
        add("--k", metavar="K", type=whole_number(1), default=10, help="items a history (10)")
        add("--out", metavar="FILE", type=file_path, help="write here, whole or not at all")
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
        add("directories", metavar="DIR", nargs="+", type=file_path, help="run directories")
        add(
            "--format",
            metavar="NAME",
            type=choice("md", "csv", "tex"),
            default="md",
            help="md (default), csv (a line a metric, every metric) or tex",
        )
        add(
            "--plot",
            metavar="FILE.png",
            type=file_path,
            help="draw validation against epochs and seconds; the ending says how (png, pdf, svg)",
        )
        add(
            "--against",
            metavar="ROW",
            type=choice("best", "first"),
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
