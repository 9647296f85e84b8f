"""Tables of a comparison as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from seqrec.comparison.tables import PARTS, Difference, Figure, Row, Table

_SHOWN = ("HR@", "NDCG@")  # MRR stands in the CSV
_COLUMNS = (
    *("protocol", "data", "sha256", "row", "seeds", "part", "metric"),
    *("mean", "deviation", "n", "reference", "difference", "low", "high"),
)


def render(tables: Sequence[Table], form: str) -> str:
    """All tables as text that ends with a line break.

    Args:
        form: "md", "tex", or "csv": one flat table, a line for each row, part and metric, in full
            precision and without the notes.
    """
    if form == "csv":
        return _csv(tables)
    return "\n".join((_md if form == "md" else _tex)(table) for table in tables)


def title(table: Table) -> str:
    """Protocol and data, as every figure must carry them."""
    data, protocol = table.data, table.protocol
    return (
        f"{protocol['id']} on {table.source} (sha256 {data['sha256'][:12]}): {data['users']:,} "
        f"users, {data['items']:,} items, {data['interactions']:,} interactions; "
        f"{protocol['users_evaluated']:,} users evaluated, every item ranked"
    )


def _md(table: Table) -> str:
    cells = [[text.replace("|", "\\|") for text in row] for row in _cells(table)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for first, *rest in [cells[0], rule, *cells[1:]]:
        aligned = (text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *aligned])} |")
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {title(table)}", "", *lines, *([""] if notes else []), *notes]) + "\n"


def _tex(table: Table) -> str:
    head, *rows = ([_escaped(text) for text in row] for row in _cells(table))
    comments = [f"% {line}" for line in (title(table), *table.notes)]
    body = [f"{' & '.join(row)} \\\\" for row in rows]
    ruled = [i for i, row in enumerate(table.rows) if not row.runs][:1]
    for i in ruled:
        body.insert(i, "\\midrule")
    return "\n".join(
        [
            *comments,
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}  % \\usepackage{{booktabs}}",
            "\\toprule",
            f"{' & '.join(head)} \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    found = re.sub(r"[\\~^&%$#_{}]", lambda c: special.get(c[0], f"\\{c[0]}"), text)
    # a hyphen in front of a digit of its own is a minus
    return re.sub(r"(?<![\w.-])([+-]\d[\d.]*)", r"$\1$", found).replace("±", r"$\pm$")


def _cells(table: Table) -> list[list[str]]:
    """The head, then a line a row."""
    names = sorted((n for n in table.names if n.startswith(_SHOWN)), key=_order)
    compared = any(row.differences for row in table.rows)
    head = ["test", "n", *names, "best epoch", "train s"]
    if compared:
        head.insert(2 + len(names), f"{table.metric} difference [95 %]")
    cells = [head]
    for row in table.rows:
        line = [row.label, str(len(row.runs)) if row.runs else ""]
        line += [_figure(row.metrics["test"][name]) for name in names]
        if compared:
            reference = row.label == table.reference
            line.append("reference" if reference else _difference(row, table.metric))
        line.append(", ".join(str(run.result["best_epoch"]) for run in row.runs))
        line.append(_seconds(row))
        cells.append(line)
    return cells


def _order(name: str) -> tuple[bool, int]:
    """HR before NDCG, each by K."""
    metric, _, k = name.partition("@")
    return metric != "HR", int(k)


def _figure(figure: Figure) -> str:
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.4f}"
    return f"{figure.mean:.4f}{spread}"


def _difference(row: Row, metric: str) -> str:
    found: Difference | None = row.differences.get(metric)
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:+.4f}"
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _seconds(row: Row) -> str:
    """Mean over the row's runs."""
    if not row.runs:
        return ""
    spent = [run.result["timing"]["train_seconds"] for run in row.runs]
    return f"{sum(spent) / len(spent):,.0f}"


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for table in tables:
        for row in table.rows:
            for part in PARTS:
                for name, figure in row.metrics[part].items():
                    found = row.differences.get(name) if part == "test" else None
                    writer.writerow(
                        [
                            *(table.protocol["id"], table.source, table.data["sha256"]),
                            *(row.label, " ".join(map(str, row.seeds)), part, name),
                            *(figure.mean, figure.deviation, figure.n),
                            *(
                                (table.reference, found.value, found.low, found.high)
                                if found
                                else [""] * 4
                            ),
                        ]
                    )
    return stream.getvalue()
