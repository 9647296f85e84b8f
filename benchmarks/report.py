"""What ``gpu_run.sh`` hands back: report.md and result.json, and whether all is well.

python -m benchmarks.report OUT STEPS DRY

STEPS has a line a step: name, exit status ("-" where it was skipped), seconds, log, the log's lines
before it and up to its end, and the reason of a skip, tab-separated. The exit status is 1 where a
test, a gate or the sanitizer failed. It imports neither torch nor anything of ours, and runs after
every step.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

# a failure of these is one of the code; of the others, one of the machine or the script
DECIDING = ("tests", "small_shapes", "memcheck", "racecheck", "suite")
TIMED_OUT = (124, 137)
FOUND = 99  # what gpu_run.sh has compute-sanitizer exit with where it found something


class Step(NamedTuple):
    """One step as judged; ``verdict`` is passed, skipped, failed, unusable or cut."""

    name: str
    verdict: str
    seconds: int
    words: str

    def bad(self, dry: bool) -> bool:
        """Whether the run fails by it. On a GPU, tests that did not run prove nothing either."""
        if not dry and self.name in ("tests", "small_shapes"):
            return self.verdict != "passed"
        return self.name in DECIDING and self.verdict == "failed"


def judge(name: str, status: str, seconds: int, log: str, reason: str) -> Step:
    """A step's verdict from its exit status and its part of the log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if status == "-":
        return Step(name, "skipped", 0, reason)
    code = int(status)
    if code in TIMED_OUT:
        return Step(name, "cut", seconds, f"ran past its time box; the last line: {last}")
    if name in ("memcheck", "racecheck"):
        return _sanitizer(name, code, seconds, lines)
    if name == "tests":
        ran = "passed" if " passed" in last else "skipped"  # none was: that is no pass
        return Step(name, "failed" if code else ran, seconds, last.strip("= "))
    if name == "ncu" and (code or "No kernels were profiled" in log):
        return Step(name, "unusable", seconds, _first(lines, "==ERROR==", "==WARNING==") or last)
    return Step(name, "passed" if code == 0 else "failed", seconds, last)


def _sanitizer(name: str, code: int, seconds: int, lines: list[str]) -> Step:
    """Its summary line decides: a tool that refuses the device exits with an error as well."""
    summary = [line for line in lines if re.search(r"(ERROR|RACECHECK) SUMMARY:", line)]
    words = summary[-1].strip("= ") if summary else ""
    refused = _first(lines, "Device not supported", "not supported", "Failed to initialize")
    if refused:
        return Step(name, "unusable", seconds, refused)
    if code == FOUND:
        return Step(name, "failed", seconds, words or "errors found")
    if code == 0 and words:
        return Step(name, "passed", seconds, words)
    return Step(name, "unusable", seconds, f"exit status {code}: {lines[-1] if lines else ''}")


def _first(lines: list[str], *marks: str) -> str:
    return next((line.strip("= ") for line in lines if any(mark in line for mark in marks)), "")


def read_steps(path: Path) -> list[Step]:
    """The steps that were recorded, judged."""
    steps = []
    for line in path.read_text().splitlines():
        name, status, seconds, log, first, end, reason = line.split("\t")
        text = ""
        if log:
            lines = Path(log).read_text(errors="replace").splitlines()
            text = "\n".join(lines[int(first) : int(end)])
        steps.append(judge(name, status, int(seconds), text, reason))
    return steps


def markdown(steps: list[Step], suite: dict[str, Any] | None, dry: bool) -> str:
    """The report."""
    lines = ["# " + ("Dry run: no GPU, tiny shapes; its times mean nothing" if dry else "GPU run")]
    if suite:
        lines += ["", *_surroundings(suite)]
    lines += ["", "| step | verdict | s | |", "|---|---|---|---|"]
    lines += [f"| {s.name} | {s.verdict} | {s.seconds} | {_cell(s.words)} |" for s in steps]
    if suite:
        for operator in dict.fromkeys(_operators(suite)):
            lines += ["", f"## {operator}", "", *_table(operator, suite["cases"])]
        lines += ["", *_remarks(suite)]
    return "\n".join(lines) + "\n"


def _surroundings(suite: dict[str, Any]) -> list[str]:
    chip = suite["processor"]
    if "gpu" in suite:
        chip = f"{suite['gpu']} (sm_{suite['capability'].replace('.', '')}), {chip}"
    versions = ", ".join(f"{name} {what}" for name, what in suite["versions"].items())
    changed = suite["changed_since"]
    tree = {None: "", True: ", with changes on top"}.get(bool(changed) or None, "")
    rates = []
    for when in ("before", "after"):
        found = suite.get(f"machine_{when}")
        if found:
            products = ", ".join(f"{t} {r / 1e3:.4g}" for t, r in found["matrix_gflop_s"].items())
            rates.append(f"{when} copy {found['copy_gb_s']:.5g} GB/s, products {products} TFLOP/s")
    return [
        f"- hardware: {chip}",
        f"- versions: {versions}",
        f"- commit: {suite['commit'] or 'unknown'}{tree}; {suite['date']}",
        f"- measured here: {'; '.join(rates)}",
        f"- figures: {suite['measure']}",
    ]


def _operators(suite: dict[str, Any]) -> list[str]:
    return [name.split()[0] for name in suite["cases"]]


def _table(operator: str, cases: dict[str, Any]) -> list[str]:
    """A row a case: ours, its share of the bound and peak, and each rival's ratio and peak."""
    entries = {name: e for name, e in cases.items() if name.split()[0] == operator}
    columns = list(
        dict.fromkeys(n for e in entries.values() if e["correct"] for n in e["ratio_to_ours"])
    )
    head = ["shape", "dtype", "runs", "ours ms", "% of bound", "peak MiB", *columns]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, entry in entries.items():
        if not entry["correct"]:
            cells = [name, "", f"**not timed**: {_cell(entry['reason'])}"]
            lines.append(f"| {' | '.join(cells + [''] * (len(head) - 3))} |")
            continue
        bound = entry["bound"]
        cells = [
            entry["shape"],
            entry["dtype"],
            entry["dispatch"],
            f"{entry['milliseconds']['ours']['median']:.3f}",
            f"{100 * bound['share']:.1f} ({bound['by']})",
            _mib(entry["peak_mib"]["ours"]),
        ]
        for rival in columns:
            ratio = entry["ratio_to_ours"].get(rival)
            peak = entry["peak_mib"].get(rival)
            cells.append("-" if ratio is None else f"{ratio:.2f}x, {_mib(peak)} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _remarks(suite: dict[str, Any]) -> list[str]:
    left_out = {
        f"- without {name}: {_cell(reason)}": None
        for entry in suite["cases"].values()
        for name, reason in entry.get("left_out", {}).items()
    }
    return [
        "A rival's column: how many times ours it takes (below 1 it is faster), and its peak. The "
        "bound is the longer of the products that cannot be avoided at the product rate measured "
        "here, and of inputs and outputs moved once at the copy rate; exponentials, comparisons "
        "and the backward's second computation of logits are not in it. Dense rivals in bfloat16 "
        "round their scores to it; ours do not.",
        "",
        *left_out,
        *(f"- not run: {_cell(line)}" for line in suite["not_run"]),
    ]


def _mib(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:300]


def main(arguments: list[str]) -> int:
    out, steps_file, dry = Path(arguments[0]), Path(arguments[1]), arguments[2] == "1"
    steps = read_steps(steps_file)
    suite_file = out / "suite.json"
    suite = json.loads(suite_file.read_text()) if suite_file.is_file() else None
    wrong = [s.name for s in steps if s.bad(dry)]
    if suite:
        wrong += [name for name, entry in suite["cases"].items() if not entry["correct"]]
        if not suite["cases"] and "machine_after" in suite:
            wrong.append("suite: no case was measured")
    result = {
        "dry": dry,
        "passed": not wrong,
        "wrong": wrong,
        "steps": [s._asdict() for s in steps],
        "suite": suite,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "report.md").write_text(markdown(steps, suite, dry))
    print("all that was run passed" if not wrong else f"FAILED: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
