"""What a command is, and how the words behind its options are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from seqrec.keys import alternatives


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


def whole_number(low: int) -> Callable[[str], int]:
    """Reads a whole number, `low` or more."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, at least {low}")
        return number

    return read


def nonempty(text: str) -> str:
    """Any text but none, which an unset shell variable leaves and which names this directory."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing")
    return text


def file_path(text: str) -> Path:
    """The path of a file or directory, which need not be there."""
    return Path(nonempty(text))


def choice(*names: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not {alternatives(names)}")
        return text

    return read
