"""Validation curves of a comparison: against epochs, and against the seconds trained.

Every seed is a line of its own in its row's colour, a dot stands at the epoch whose weights were
kept, and the counting baselines are drawn across. Seconds count training alone; of an epoch that
was resumed they count what came after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrec import rundir
from seqrec.comparison.runs import Finished
from seqrec.comparison.tables import Table
from seqrec.errors import UsageError
from seqrec.files import replacing
from seqrec.training.journal import read_journal

# Okabe and Ito's, told apart by colour-blind readers; line styles go on where colours repeat
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_LOOK: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "pdf.fonttype": 42,  # letters stay letters, which journals ask for
    "svg.hashsalt": "seqrec",
}


def check(path: Path) -> None:
    """Refuse what `draw` could not write, before anything is computed.

    Raises:
        UsageError: matplotlib is missing, or cannot write such a file, or there is no place for it.
    """
    where = f"--plot {path}"
    try:
        import matplotlib  # noqa: F401
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        mend = 'pip install "seqrec[plot]"'
        raise UsageError("matplotlib is not installed", where, mend) from None

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise UsageError(
            f"no picture ends in {path.suffix or 'nothing'!r}", where, "name a .png, .pdf or .svg"
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError("no place for a file", where, "name one in a directory")


def curve(run: Finished, metric: str) -> tuple[list[int], list[float], list[float]]:
    """Epochs, training seconds up to their ends, and the validation metric.

    Raises:
        UsageError: the log is missing, damaged, or without that metric.
    """
    path = run.directory / rundir.LOG
    try:
        events = [event for event in read_journal(path) if event["event"] == "epoch"]
        epochs = [int(event["epoch"]) for event in events]
        seconds = list(itertools.accumulate(float(event["seconds"]) for event in events))
        values = [float(event["valid"][metric]) for event in events]
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the log has no curve of {metric}: {type(error).__name__} {error}",
            str(path),
            "compare without --plot, or leave this run out",
        ) from None
    return epochs, seconds, values


def draw(tables: Sequence[Table], path: Path) -> None:
    """Write the picture, a line of two panels for each table.

    Raises:
        UsageError: a run's log cannot be drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure

    curves = [[[curve(run, t.metric) for run in row.runs] for row in t.rows] for t in tables]
    with matplotlib.rc_context(_LOOK):
        keys = [math.ceil(sum(bool(row.runs) for row in table.rows) / 2) for table in tables]
        heights = [3.3 + 0.16 * rows for rows in keys]  # inches: the panels and their key
        figure = Figure(figsize=(7.0, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=heights)
        for table, lines, part in zip(tables, curves, parts.flat, strict=True):
            left, right = part.subplots(1, 2, sharey=True)
            _panels(table, lines, left, right)
            part.legend(
                *left.get_legend_handles_labels(),
                loc="outside lower center",
                ncols=2,
                fontsize=7,
            )
        with replacing(path.resolve()) as temporary:
            # no date inside: equal runs give equal pictures
            form = path.suffix[1:].lower()
            dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
            figure.savefig(temporary, format=form, dpi=200, metadata=dated.get(form))


def _panels(table: Table, lines: Sequence[Any], left: Any, right: Any) -> None:
    styles = [(colour, style) for style in _STYLES for colour in _COLOURS]
    for i, (row, runs) in enumerate(zip(table.rows, lines, strict=True)):
        if not row.runs:
            value = row.metrics["valid"][table.metric].mean
            for panel in (left, right):
                panel.axhline(value, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)))
            left.annotate(
                row.label,
                (1.0, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                color="0.35",
                fontsize=7,
            )
            continue
        colour, style = styles[i % len(styles)]
        for j, (run, (epochs, seconds, values)) in enumerate(zip(row.runs, runs, strict=True)):
            for panel, places in ((left, epochs), (right, seconds)):
                label = row.label if panel is left and j == 0 else None
                panel.plot(places, values, style, color=colour, linewidth=1.0, label=label)
                if run.result["best_epoch"] in epochs:
                    best = epochs.index(run.result["best_epoch"])
                    panel.plot(places[best], values[best], "o", color=colour, markersize=3.5)
    left.set_ylabel(f"validation {table.metric}")
    left.set_xlabel("epoch")
    right.set_xlabel("seconds of training")
    for panel in (left, right):
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
    left.set_title(f"{table.source}, {table.protocol['id']}", loc="left", fontsize=9)
