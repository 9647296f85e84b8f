"""The interleaved timer, and the gate in front of it.

Two readings of one machine an hour apart differ more than two implementations do. So rivals run in
turn, round after round, each round in another order, and what is quoted are ratios, taken in each
round, and the median of them. On the CPU a figure is CPU time of the one thread that works (others
on the machine cost it little), wall time beside it; on a GPU it is the time between two events,
with the second-level cache overwritten before every call.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from seqrec_kernels.backend import backend, choose, report

from ._machine import Machine, one_thread, peak_mib

MEASURE = {
    "cpu": "CPU time of the one working thread, rivals interleaved, median over rounds",
    "cuda": "CUDA events around one call, launches included, second-level cache overwritten before "
    "it, rivals interleaved, median over rounds",
}
FLUSH = 256 << 20  # bytes, more than any chip's second-level cache
CASE_SECONDS = {"cpu": 30.0, "cuda": 3.0}  # of timing a case, once it has three rounds
OURS = ("ours", "seqrec ")


def is_ours(rival: str) -> bool:
    """Whether a rival is one of our implementations, whose results must be right."""
    return rival.startswith(OURS)


class Case(NamedTuple):
    """One shape of one operator: rivals that do the same work, ours among them.

    Attributes:
        operator: as dispatch knows it.
        shape: what a table shows.
        dtype: of queries and items.
        runs: the implementation that dispatch picks; it is the rival "ours".
        rivals: name -> a call that does the whole work; "ours" is compared with the others, our
            other implementations among them as "seqrec NAME".
        left_out: name of an implementation or peer that does not run here -> why.
        gate: called with a rival's name; runs it and raises AssertionError where it is not right.
        operations, bytes: floating-point operations of the products that cannot be avoided, and
            bytes of inputs read once and outputs written once.
        clear: lets go of what an earlier call left behind.
        steps: of an epoch, where the work is one step of training; else 0.
    """

    operator: str
    shape: str
    dtype: torch.dtype
    runs: str
    rivals: dict[str, Callable[[], object]]
    left_out: dict[str, str]
    gate: Callable[[str], None]
    operations: float
    bytes: float
    clear: Callable[[], None] = lambda: None
    steps: int = 0

    @property
    def name(self) -> str:
        """Operator and shape; the dtype where it is not float32."""
        dtype = "" if self.dtype == torch.float32 else f", {dtype_name(self.dtype)}"
        return f"{self.operator} {self.shape}{dtype}"


def benchmarked(benchmark: Callable[..., object], made: Case, rival: str) -> None:
    """One rival of a case by pytest-benchmark, once it is known to be right.

    Args:
        benchmark: pytest-benchmark's fixture.
        rival: skipped with the reason where it does not run.
    """
    if rival not in made.rivals:
        pytest.skip(made.left_out.get(rival, f"ours is {made.runs}"))
    made.gate(rival)
    benchmark(made.rivals[rival])


class WrongResult(Exception):
    """Ours is not right, or does not run; no speed is reported then."""


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def implementations(
    operator: str, queries: Tensor, items: Tensor, call: Callable[[], object]
) -> tuple[str, dict[str, Callable[[], object]], dict[str, str]]:
    """``call`` on every implementation that can run it.

    Returns:
        The name that dispatch picks, the rivals ("ours" is that one), and the reasons of those that
        cannot run. The dense reference is no rival: "eager" and "dense" are what it would be.
    """
    picked = choose(operator, queries, items)
    rivals: dict[str, Callable[[], object]] = {"ours": call}
    left_out = {}
    for name, reason in report(queries.device, queries.dtype)[operator].items():
        if name in (picked, "reference"):
            continue
        if reason is None:
            rivals[f"seqrec {name}"] = _forced(name, call)
        else:
            left_out[f"seqrec {name}"] = reason
    return picked, rivals, left_out


def _forced(name: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with backend(name):
            return call()

    return run


def measure(case: Case, machine: Machine, rounds: int) -> dict[str, Any]:
    """Everything that is kept of a case: times, ratios, peak memory, share of the bound.

    Raises:
        WrongResult: one of our implementations is wrong or fails.
    """
    device = machine.device
    with one_thread():
        left_out = dict(case.left_out)
        kept = list(gated(case, left_out))
        rivals = {name: case.rivals[name] for name in kept}
        peaks = {}
        for name, call in rivals.items():
            case.clear()
            peaks[name] = peak_mib(call, device)
        times, walls = interleaved(rivals, device, rounds)
    figures = summary(times)
    if device == "cpu":
        figures["wall_milliseconds"] = {n: round(statistics.median(w), 3) for n, w in walls.items()}
    bound, by = machine.bound(case.operations, case.bytes, case.dtype)
    ours = statistics.median(times["ours"])
    return {
        "correct": True,
        "operator": case.operator,
        "shape": case.shape,
        "dtype": dtype_name(case.dtype),
        "dispatch": case.runs,
        "rounds": len(times["ours"]),
        **figures,
        "peak_mib": peaks,
        # digits that count, not places: a tiny shape's share lies far below .0001
        "bound": {"milliseconds": _digits(bound), "by": by, "share": _digits(bound / ours)},
        "left_out": left_out,
        **({"steps_an_epoch": case.steps} if case.steps else {}),
    }


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


def gated(case: Case, left_out: dict[str, str]) -> Iterable[str]:
    """Names of the rivals that compute the right thing; a peer that does not is left out."""
    for name in case.rivals:
        case.clear()
        try:
            case.gate(name)
        except Exception as error:  # a peer fails in whatever way it likes
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if is_ours(name):
                raise WrongResult(f"{name}: {what}") from error
            left_out[name] = f"wrong or failing here: {what}"
        else:
            yield name


def interleaved(
    rivals: dict[str, Callable[[], object]], device: str, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of every rival in every round, and wall milliseconds beside them."""
    names = list(rivals)
    times: dict[str, list[float]] = {name: [] for name in names}
    walls: dict[str, list[float]] = {name: [] for name in names}
    cuda = device == "cuda"
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device) if cuda else None
    clock = _events if cuda else _thread_time
    for name in names:
        rivals[name]()  # compilation and first touches are nobody's time
    order = random.Random(0)
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - begin > CASE_SECONDS[device]:
            break
        order.shuffle(names)
        for name in names:
            if flush is not None:
                flush.zero_()
            start = time.perf_counter()
            times[name].append(clock(rivals[name]))
            walls[name].append(1e3 * (time.perf_counter() - start))
    return times, walls


def _thread_time(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - start)


def _events(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and extremes, and how many times as long as ours each rival takes, round by round."""
    ours = times["ours"]
    return {
        "milliseconds": {
            name: {
                "median": round(statistics.median(t), 3),
                "least": round(min(t), 3),
                "most": round(max(t), 3),
            }
            for name, t in times.items()
        },
        "ratio_to_ours": {
            name: round(statistics.median(a / b for a, b in zip(t, ours, strict=True)), 3)
            for name, t in times.items()
            if name != "ours"
        },
    }
