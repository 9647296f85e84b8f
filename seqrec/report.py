"""Results as text: the tables that ``train``, ``resume`` and ``evaluate`` print.

Rendered from ``result.json`` alone, so that any kept result prints the same again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqrec.preset import named

Metrics = Mapping[str, float]

_SHOWN = ("HR@", "NDCG@")  # MRR stands in result.json


def finished(result: Mapping[str, Any], directory: Path) -> str:
    """A finished run: its test figures beside the rulers, how they came about, what comes next.

    Args:
        result: what ``result.json`` holds.
        directory: the run directory.
    """
    timing, hardware = result["timing"], result.get("hardware", {})
    facts = [
        ("data", _data(result["data"])),
        ("protocol", _protocol(result["protocol"])),
        (
            "training",
            f"seed {result['seed']}, best epoch {result['best_epoch']} of {result['epochs_run']}, "
            f"chosen by validation {result['protocol']['select']}; "
            f"{timing['train_seconds']:,.0f} s on {_machine(hardware)}",
        ),
        ("run", str(directory)),
        ("next", _next(result["data"], directory)),
    ]
    if result.get("preset"):
        # results of earlier versions do not say what was changed
        facts.insert(2, ("preset", named(result["preset"], result.get("preset_changed"))))
    return f"{_table('test', result, result['method'])}\n\n{_lines(facts)}"


def evaluation(found: Mapping[str, Any], method: str) -> str:
    """What ``evaluate`` found: validation and test figures under one protocol.

    Args:
        found: ``metrics``, ``protocol`` and ``baselines``, formed as in ``result.json``.
        method: the method's name, for its row.
    """
    tables = [_table(part, found, method) for part in ("valid", "test")]
    return "\n\n".join([*tables, _lines([("protocol", _protocol(found["protocol"]))])])


def _table(part: str, result: Mapping[str, Any], method: str) -> str:
    """The method, the rulers and, where it is known, the best possible; a row each."""
    own: Metrics = result["metrics"][part]
    rows: dict[str, Metrics] = {method: own}
    for name in ("item-to-item", "popularity"):
        if name in result["baselines"]:
            rows[name] = result["baselines"][name][part]
    best: Metrics = result.get("best_possible", {}).get(part, {})
    oracle: Metrics = result.get("oracle", {}).get(part, {})
    if oracle:
        rows["best ranker, these targets"] = oracle
    if best:
        rows["best possible"] = best
    columns = sorted((n for n in own if n.startswith(_SHOWN)), key=_column)
    share = [f"{method}, of best possible"] if best else []
    width = max(map(len, [part, *rows, *share]))
    lines = [f"{part:<{width}}" + "".join(f"{name:>9}" for name in columns)]
    for name, metrics in rows.items():
        cells = (f"{metrics[c]:9.4f}" if c in metrics else f"{'':9}" for c in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    for name in share:
        cells = (f"{own[c] / best[c]:9.1%}" if best.get(c) else f"{'':9}" for c in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _column(name: str) -> tuple[bool, int]:
    """HR before NDCG, each by K."""
    metric, _, k = name.partition("@")
    return metric != "HR", int(k)


def _data(data: Mapping[str, Any]) -> str:
    return (
        f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions "
        f"({data['file']}, sha256 {data['sha256'][:12]})"
    )


def _protocol(card: Mapping[str, Any]) -> str:
    return f"{card['id']}, {card['users_evaluated']:,} users, every item ranked"


def _next(data: Mapping[str, Any], directory: Path) -> str:
    """A command that works as it stands where the items' names are known."""
    command = f"seqrec recommend {shlex.quote(str(directory))} --input"
    if data["format"] == "synthetic":
        return f"echo 'you i1 i2' | {command} -"
    return f"{command} histories.txt"


def _machine(hardware: Mapping[str, Any]) -> str:
    if "gpu" in hardware:
        return str(hardware["gpu"])
    threads = hardware.get("threads", 1)
    return f"{threads} thread{'s'[: threads != 1]} of {hardware.get('cpu', 'a CPU')}"


def _lines(facts: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<9} {text}" for name, text in facts)
