"""Ten million items on one machine: loss and gradients, ranks, top-K, inside 8 GB.

python -m benchmarks.ten_million [--items 10_000_000] [--limit-gb 8] [--out FILE.json]

Each operator is called once on ``[V, D]`` float32 items; a rank or a loss over the dense
``[M, V]`` scores would need 5 GB for 128 rows, and as much again for their gradient. What counts is
the resident set of this whole process at its highest during the call (Linux writes it down), so the
table itself and, for the loss, its gradient, are in it. Before a figure is kept the result is
compared with float64, formed some items at a time: the loss over all rows, gradients, ranks and
top-K of some. The exit status is 1 where a result is wrong or a call goes above the limit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec_kernels import SeenItems, catalog_cross_entropy, catalog_rank, catalog_topk
from seqrec_kernels.backend import choose

from ._gradients import TOLERANCE
from ._machine import peak_resident, surroundings
from .run import write
from .test_catalog_rank import slack

ROWS, SAMPLED, K, SEEN = 128, 8, 20, 8
CHUNK = 1 << 13  # items at a time in float64
OUT = Path(__file__).with_name("out") / "ten_million.json"


class Problem:
    """Seeded inputs as large as a trained recommender's: scores of standard deviation 3."""

    def __init__(self, items: int, dim: int) -> None:
        torch.manual_seed(0)
        width = (3 / dim**0.5) ** 0.5
        self.q = torch.randn(ROWS, dim).mul_(width).requires_grad_()
        self.e = torch.randn(items, dim).mul_(width).requires_grad_()
        self.y = torch.randint(items, (ROWS,))
        self.seen = SeenItems.from_lists(torch.randint(items, (ROWS, SEEN)).tolist())

    def chunks(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First item, ``[<= CHUNK, D]`` items and ``[R, <= CHUNK]`` scores of rows, in float64."""
        q = self.q.detach()[rows].double()
        for first in range(0, self.e.shape[0], CHUNK):
            part = self.e.detach()[first : first + CHUNK].double()
            yield first, part, q @ part.T


def check_loss(problem: Problem, loss: Tensor) -> None:
    """The loss; gradients of the first queries, and of the targets and of as many other items."""
    q, e, y = problem.q.detach().double(), problem.e.detach(), problem.y
    everyone = torch.arange(ROWS)
    parts = [scores.logsumexp(1) for _, _, scores in problem.chunks(everyone)]
    lse = torch.stack(parts, 1).logsumexp(1)
    own = (q * e[y].double()).sum(1)
    right = (lse - own).mean()
    error = float((loss.double() - right).abs() / right)
    assert error <= 1e-5, f"error {error:.2e} of the loss"

    some = everyone[:SAMPLED]
    d_q = -e[y[some]].double()
    for _, part, scores in problem.chunks(some):
        d_q += (scores - lse[some, None]).exp() @ part
    _close("queries", problem.q.grad, some, d_q / ROWS)

    picked = torch.cat([y, torch.randint(e.shape[0], (ROWS,))]).unique()
    p = (q @ e[picked].double().T - lse[:, None]).exp() - F.one_hot(
        torch.searchsorted(picked, y), len(picked)
    )
    _close("items", problem.e.grad, picked, p.T @ q / ROWS)


def _close(name: str, gradient: Tensor | None, rows: Tensor, right: Tensor) -> None:
    assert gradient is not None, f"no gradient of {name}"
    error = float((gradient[rows].double() - right).norm() / right.norm())
    allowed, _ = TOLERANCE["cpu", torch.float32]
    assert error <= allowed, f"error {error:.2e} of the gradient of {name} > {allowed:.0e}"


def candidates(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """float64 scores ``[SAMPLED, V]`` without the seen items, and how far off float32 may be."""
    some = torch.arange(SAMPLED)
    scores = torch.cat([scores for _, _, scores in problem.chunks(some)], 1)
    allowed = slack(problem.q.detach()[some], problem.e.detach(), scores, ours=True)
    own = scores.gather(1, problem.y[some, None])
    scores.scatter_(1, problem.seen.ids.reshape(ROWS, SEEN)[some], -torch.inf)
    return scores, own, allowed


def check_rank(problem: Problem, rank: Any) -> None:
    """Counts of the first rows, as far as rounding leaves them open."""
    scores, own, allowed = candidates(problem)
    scores.scatter_(1, problem.y[:SAMPLED, None], -torch.inf)
    least, most = ((scores > own + sign * allowed).sum(1) for sign in (1, -1))
    found = rank.greater[:SAMPLED]
    assert ((least <= found) & (found <= most)).all(), f"ranks {found.tolist()}"


def check_topk(problem: Problem, topk: Any) -> None:
    """Ids and scores of the first rows."""
    scores, _, allowed = candidates(problem)
    best, ids = scores.topk(K).values, topk.ids[:SAMPLED]
    assert all(len(row.unique()) == K for row in ids), "an item twice"
    missed = best - scores.gather(1, ids)
    assert (missed <= allowed).all(), f"misses the best by {float(missed.max()):.2e}"
    assert ((topk.scores[:SAMPLED] - best).abs() <= allowed).all(), "scores are off"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ten_million")
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--limit-gb", type=float, default=8.0, help="10^9 bytes, resident")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    problem = Problem(options.items, options.dim)
    q, e, y, seen = problem.q, problem.e, problem.y, problem.seen

    def loss() -> Tensor:
        found = catalog_cross_entropy(q, e, y)
        found.backward()
        return found.detach()

    # ranks first: they leave no gradient behind
    calls: dict[str, tuple[Callable[[], Any], Callable[[Problem, Any], None]]] = {
        "catalog_rank": (lambda: catalog_rank(q, e, y, seen=seen), check_rank),
        "catalog_topk": (lambda: catalog_topk(q, e, K, seen=seen), check_topk),
        "catalog_cross_entropy": (loss, check_loss),
    }
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.ten_million", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **surroundings(),
        "items": options.items,
        "dim": options.dim,
        "rows": ROWS,
        "items_gb": round(e.nbytes / 1e9, 2),
        "limit_gb": options.limit_gb,
        "calls": {},
    }
    print(f"V={options.items:,} D={options.dim} M={ROWS}, items {result['items_gb']} GB")
    print(f"{'':<40}{'CPU s':>8}{'wall s':>8}{'GB at most':>12}")
    failed = False
    for name, (call, check) in calls.items():
        begin, wall = time.thread_time(), time.perf_counter()
        found, peak = peak_resident(call)
        entry = {
            "dispatch": choose(name, q, e),
            "seconds": round(time.thread_time() - begin, 2),
            "wall_seconds": round(time.perf_counter() - wall, 2),
            "resident_gb": round(peak / 1e9, 3),
            "reason": "",
        }
        try:
            check(problem, found)
            if peak > 1e9 * options.limit_gb:
                entry["reason"] = f"above {options.limit_gb} GB"
        except AssertionError as error:
            entry["reason"] = f"wrong: {error}"
        failed |= bool(entry["reason"])
        result["calls"][name] = entry
        label = f"{name} ({entry['dispatch']})"
        figures = f"{entry['seconds']:8.2f}{entry['wall_seconds']:8.2f}{entry['resident_gb']:12.2f}"
        print(f"{label:<40}{figures}  {entry['reason'] or 'right'}", flush=True)
    write(result, options.out)
    print(f"in {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
