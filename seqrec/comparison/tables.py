"""`compare`: from run directories to tables of means, spreads and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.comparison.runs import Finished, by_protocol, by_settings, labels, read_all
from seqrec.errors import UsageError
from seqrec.evaluation.bootstrap import paired_bootstrap
from seqrec.evaluation.ranking import Ranks
from seqrec.keys import alternatives, nearest

AGAINST = ("best", "first")
_SEEDS = "Several seeds: mean ± sample standard deviation over n runs."
PARTS = ("valid", "test")


@dataclass(frozen=True)
class Figure:
    """A metric over the seeds of a row.

    Attributes:
        mean: over seeds.
        deviation: their sample standard deviation; None of a single run.
        n: how many.
    """

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A row's mean less that of the reference row, in one test metric.

    Attributes:
        value: the difference.
        low, high: 95 % interval of the paired bootstrap; None where ranks are not kept.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """Runs that differ only in seed, or a ruler.

    Attributes:
        label: unique in its table.
        runs: by seed; none for a ruler.
        metrics: by "valid" and "test", then by name.
        differences: by name, of test metrics; empty for the reference and for rulers.
    """

    label: str
    runs: tuple[Finished, ...]
    metrics: dict[str, dict[str, Figure]]
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Table:
    """Rows of one protocol on one data set.

    Attributes:
        protocol, data: as in the runs' ``result.json``.
        source: the data's name, with the filters that are not the default.
        metric: the one that is drawn and whose differences are shown.
        rows: in the order named, then the rulers.
        reference: label of the row that differences are taken to.
        notes: what a reader must know, whole sentences.
    """

    protocol: dict[str, Any]
    data: dict[str, Any]
    source: str
    metric: str
    rows: list[Row]
    reference: str
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """Test metrics that every row has."""
        first, *rest = (row.metrics["test"] for row in self.rows)
        return [name for name in first if all(name in metrics for metrics in rest)]


def compare(
    directories: Sequence[str | Path],
    *,
    against: str = "best",
    metric: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Table]:
    """Finished runs side by side, a table for each protocol and data, never a mixed one.

    Runs that differ only in seed are one row: mean, sample standard deviation, n. Differences to
    the reference row come with 95 % intervals of a paired bootstrap over the test users, from the
    ranks that each run keeps. With several seeds a user's value is its mean over the row's seeds:
    users are resampled, the trained models are taken as they are, and what the seed does is told
    by the standard deviation.

    Args:
        directories: of finished runs.
        against: the reference row, "best" (highest validation mean of `metric`, so that the test
            figures choose nothing) or "first".
        metric: default: the one by which the table's first run chose its epoch.
        resamples, seed: of the bootstrap; equal calls give equal intervals.

    Returns:
        The tables, in the order of their first runs; the rulers are rows as well.

    Raises:
        UsageError: a directory without a finished run, a damaged file, an unknown metric.
    """
    if against not in AGAINST:
        raise UsageError(f"{against!r} is not {alternatives(AGAINST)}", "against")
    return [
        _table(runs, against, metric, resamples, seed)
        for runs in by_protocol(read_all(directories))
    ]


def _table(
    runs: list[Finished], against: str, metric: str | None, resamples: int, seed: int
) -> Table:
    first = runs[0].result
    grouped = by_settings(runs)
    rows = [
        Row(label, tuple(group), {part: _figures(group, part) for part in PARTS})
        for label, group in zip(labels(grouped), grouped, strict=True)
    ]
    chosen = metric or first["protocol"]["select"]
    for row in rows:
        if chosen not in row.metrics["test"]:
            close = nearest(chosen, row.metrics["test"])
            known = (
                f"did you mean {close}?" if close else f"it has {', '.join(row.metrics['test'])}"
            )
            raise UsageError(f"no {chosen}", str(row.runs[0].directory), known)
    best = max(rows, key=lambda row: row.metrics["valid"][chosen].mean)
    reference = rows[0] if against == "first" else best
    notes = [_SEEDS] if any(len(row.runs) > 1 for row in rows) else []
    if len(rows) > 1:
        rows, more = _differences(rows, reference, against, chosen, resamples, seed)
        notes += more
    rulers = [
        Row(name, (), {part: _single(found[part]) for part in PARTS})
        for name, found in sorted(first["baselines"].items())
    ]
    return Table(
        first["protocol"],
        first["data"],
        runs[0].source(),
        chosen,
        [*rows, *rulers],
        reference.label,
        [*notes, *_machines(rows)],
    )


def _figures(runs: Sequence[Finished], part: str) -> dict[str, Figure]:
    found = {}
    for name in runs[0].result["metrics"][part]:
        values = [run.result["metrics"][part][name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        found[name] = Figure(statistics.fmean(values), deviation, len(values))
    return found


def _single(metrics: dict[str, float]) -> dict[str, Figure]:
    return {name: Figure(value, None, 1) for name, value in metrics.items()}


def _differences(
    rows: list[Row], reference: Row, against: str, metric: str, resamples: int, seed: int
) -> tuple[list[Row], list[str]]:
    """Rows with their differences to the reference, and what is to be said about them."""
    names = [n for n in reference.metrics["test"] if all(n in r.metrics["test"] for r in rows)]
    values: dict[str, np.ndarray] = {}  # label -> [B, metrics], means over the row's seeds
    users: np.ndarray | None = None
    missing: list[Path] = []
    for row in rows:
        ranks = [(run, run.ranks()) for run in row.runs]
        missing += [run.directory for run, found in ranks if found is None]
        kept = [(run, found) for run, found in ranks if found is not None]
        if len(kept) < len(ranks):
            continue
        for run, found in kept:
            users = found.users if users is None else users
            if not np.array_equal(users, found.users):
                raise UsageError(
                    "its ranks are of other users than those of the runs before it",
                    str(run.directory / "ranks" / "test.npz"),
                    "leave this run out, or remove its ranks",
                )
        values[row.label] = np.mean([_each(run, found, names) for run, found in kept], axis=0)

    intervals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    others = [row.label for row in rows if row is not reference and row.label in values]
    if reference.label in values and others:
        stacked = np.hstack([values[label] - values[reference.label] for label in others])
        low, high = paired_bootstrap(stacked, resamples=resamples, seed=seed)
        shape = (len(others), len(names))
        both = zip(low.reshape(shape), high.reshape(shape), strict=True)
        intervals = dict(zip(others, both, strict=True))

    compared = []
    for row in rows:
        found_for: dict[str, Difference] = {}
        for i, name in enumerate(names if row is not reference else []):
            value = row.metrics["test"][name].mean - reference.metrics["test"][name].mean
            ends = intervals.get(row.label)
            interval = (None, None) if ends is None else (float(ends[0][i]), float(ends[1][i]))
            found_for[name] = Difference(value, *interval)
        compared.append(Row(row.label, row.runs, row.metrics, found_for))

    how = f"the best by validation {metric}" if against == "best" else "the first one"
    notes = [f"Differences are to {reference.label!r}, {how}."]
    if intervals:
        assert users is not None
        several = any(len(row.runs) > 1 for row in rows)
        notes.append(
            f"Intervals: 95 %, paired bootstrap over {len(users):,} users, {resamples:,} times; "
            + ("a user's value is its mean over the row's seeds; " if several else "")
            + "what another seed would do is not in them."
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        notes.append(f"No interval where ranks/test.npz is not kept: {missing[0]}{more}.")
    return compared, notes


def _each(run: Finished, ranks: Ranks, names: Sequence[str]) -> np.ndarray:
    """float64 [B, metrics]."""
    found = ranks.each(run.config.evaluation.ks, run.result["protocol"]["ties"])
    return np.stack([found[name] for name in names], axis=1)


def _machines(rows: Sequence[Row]) -> list[str]:
    """Seconds of different machines do not compare."""
    hardware = [run.result.get("hardware", {}) for row in rows for run in row.runs]
    told = {
        f"{one.get('gpu') or one.get('cpu', 'unknown')}, {one.get('threads', '?')} threads"
        for one in hardware
    }
    return (
        [f"Seconds are of different machines: {'; '.join(sorted(told))}."] if len(told) > 1 else []
    )
