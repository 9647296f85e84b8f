"""The interleaved timer, and what has to stand beside every number.

Two readings of one machine an hour apart differ more than two implementations do. So rivals run in
turn, round after round, each round in another order; a figure is CPU time of the one thread that
works (others on the machine cost it little), its median over rounds, and what is quoted are ratios.
"""

from __future__ import annotations

import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent


class Case(NamedTuple):
    """One shape of one operator: rivals that do the same work, ours among them.

    Attributes:
        name: operator and shape.
        rivals: name -> a call that does the whole work; "ours" is compared with the others.
        gate: raises where ours is not right; no speed is reported then.
    """

    name: str
    rivals: dict[str, Callable[[], object]]
    gate: Callable[[], None]


def interleaved(case: Case, rounds: int = 7) -> dict[str, list[float]]:
    """Milliseconds of thread CPU time of every rival in every round, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        case.gate()
        names = list(case.rivals)
        times: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            case.rivals[name]()  # compilation and first touches are nobody's time
        order = random.Random(0)
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                start = time.thread_time()
                case.rivals[name]()
                times[name].append(1e3 * (time.thread_time() - start))
        return times
    finally:
        torch.set_num_threads(threads)


def summary(times: dict[str, list[float]]) -> dict[str, object]:
    """Medians and extremes, and how many times as long as ours each rival takes, round by round."""
    ours = times["ours"]
    return {
        "milliseconds": {
            name: {
                "median": round(statistics.median(t), 2),
                "least": round(min(t), 2),
                "most": round(max(t), 2),
            }
            for name, t in times.items()
        },
        "ratio_to_ours": {
            name: round(statistics.median(a / b for a, b in zip(t, ours, strict=True)), 3)
            for name, t in times.items()
            if name != "ours"
        },
    }


def surroundings() -> dict[str, object]:
    """Commit, hardware and versions."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    # a clean tree of the measured package means the commit is what ran
    changed = git("status", "--porcelain", "--", "seqrec_kernels", "benchmarks/*.py")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_since": changed.splitlines(),
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def calibration() -> float:
    """GFLOP/s of one large float32 product on one thread: what the machine gives just now."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        best = float("inf")
        for _ in range(4):
            start = time.thread_time()
            torch.mm(a, b)
            best = min(best, time.thread_time() - start)
        return round(2 * 1024**3 / best / 1e9, 1)
    finally:
        torch.set_num_threads(threads)
