"""The ``seqrec`` command: a thin shell over :mod:`seqrec.api`.

Results go to stdout, progress and warnings to stderr.  A mistake in command, configuration or data
is one line on stderr and exit status 2; everything heavy (torch, polars) is imported by the command
that needs it, so ``--help`` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from seqrec.commands import COMMANDS, EXIT_CODES
from seqrec.errors import Interrupted, LeakError, UsageError
from seqrec.keys import nearest, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, default ``sys.argv[1:]``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # ids are UTF-8 whatever the locale says
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        if args is not None:
            args.run(args)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the exit status
        return 0
    except UsageError as error:
        _say(str(error))
        return 2
    except Interrupted as stop:
        resume = f"seqrec resume {shlex.quote(str(stop.directory))}"
        _say(f"stopped, state saved ({stop.directory}); go on with `{resume}`")
        return 130
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        return 130
    except LeakError as error:
        _say(str(error))
        return 1
    except BrokenPipeError:
        # whoever read our output has seen enough; without this the interpreter complains at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _say_unexpected(error)
        return 1


def _say(line: str) -> None:
    print(f"seqrec: {line}", file=sys.stderr)


def _say_unexpected(error: Exception) -> None:
    """One line, and the traceback in a file; with SEQREC_DEBUG=1 on stderr, for logs."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if len(what) > 400:
        what = what[:400] + " ..."
    if os.environ.get("SEQREC_DEBUG") == "1":
        traceback.print_exception(error)
        _say(what)
        return
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="seqrec-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        _say(f"{what} (traceback in {file.name}); SEQREC_DEBUG=1 shows it here")
    except OSError:  # no room for a file either
        _say(f"{what}; SEQREC_DEBUG=1 shows the traceback")


# Parsing ------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a UsageError and options are never abbreviated."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        what = message.removeprefix("argument ")
        what = what.replace("the following arguments are required:", "missing")
        raise UsageError(what, self.prog, f"see `{self.prog} --help`")


def _parse(argv: list[str]) -> argparse.Namespace | None:
    """The checked arguments, or None where argparse has answered itself (--help, --version)."""
    parser, commands = _build_parser()
    if not argv:
        raise UsageError("no command", "seqrec", f"one of {', '.join(commands)}; see seqrec --help")
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise unknown("command", argv[0], "seqrec", commands, "the commands")
    # before argparse looks, which would rather miss --data than see --dta
    _check_options(commands.get(argv[0], parser), argv[1:] if argv[0] in commands else argv)
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit:
        return None
    if rest:
        prog = f"seqrec {argv[0]}"
        raise UsageError(f"unexpected argument {rest[0]!r}", prog, f"see `{prog} --help`")
    return args


def _check_options(parser: argparse.ArgumentParser, words: list[str]) -> None:
    known = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0]
        if re.match(r"--?[^\W\d]", option) and option not in known:
            close = nearest(option, known)
            mend = f"did you mean {close}?" if close else f"see `{parser.prog} --help`"
            raise UsageError(f"unknown option {option}", parser.prog, mend)


def _build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="seqrec",
        description="Train a recommender on an interaction log, judge it against the full\n"
        "catalogue, and recommend.",
        epilog="start with:\n"
        "  seqrec train sasrec --data synthetic --epochs 30 --out runs/demo\n"
        "  seqrec data events.csv\n\n" + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"seqrec {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    commands: dict[str, argparse.ArgumentParser] = {}
    for command in COMMANDS:
        added = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"{command.more()}\n{EXIT_CODES}",
        )
        command.arguments(added)
        added.set_defaults(run=command.run)
        commands[command.name] = added
    return parser, commands


def _version() -> str:
    try:
        return metadata.version("seqrec")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
