"""``seqrec bench``: the benchmarks of the operators, on the machine that seqrec is installed on."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, util

from seqrec.errors import UsageError

PROGRAM = "seqrec bench"


def run(words: Sequence[str]) -> None:
    """Measure, and print one table.

    In an installed seqrec the benchmarks are a part of it, in a checkout they stand beside it.

    Args:
        words: what ``python -m benchmarks.run`` takes.

    Raises:
        UsageError: words it does not take, or what the benchmarks are written with is missing.
        RuntimeError: a result of ours is wrong.
    """
    if util.find_spec("pytest") is None:
        raise UsageError("the benchmarks need pytest", PROGRAM, "pip install pytest")
    installed = util.find_spec("seqrec.benchmarks") is not None
    benchmarks = import_module("seqrec.benchmarks.run" if installed else "benchmarks.run")
    try:
        wrong = benchmarks.main(list(words), PROGRAM)
    except benchmarks.Mistake as mistake:
        raise UsageError(str(mistake), PROGRAM, f"see `{PROGRAM} --help`") from None
    if wrong:
        raise RuntimeError("a result of ours is wrong; the file that --out names says which")
