"""Re-ranking in C++, in every instruction set, against a sort in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from native_versions import threads, version  # noqa: F401 (fixtures)
from rerank_calls import (
    SHAPES,
    every_call_is_exact,
    every_place_is_drawn_equally_often,
    expected,
    real_scores_are_those_of_the_best,
    what_is_no_number_is_never_drawn,
    whole,
)

from seqrec_kernels import SeenItems, rerank_negatives
from seqrec_kernels.ops.rerank_negatives import native as compiled
from seqrec_kernels.ops.rerank_negatives.problem import Problem


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_call_is_exact(shape: Any, ties: bool) -> None:
    every_call_is_exact(shape, ties)


def test_what_is_no_number_is_never_drawn() -> None:
    what_is_no_number_is_never_drawn()


@pytest.mark.parametrize("repeated", ["drop", "keep"])
@pytest.mark.parametrize("top_m", [4, 7, 40])
def test_every_place_is_drawn_equally_often(top_m: int, repeated: str) -> None:
    every_place_is_drawn_equally_often(top_m, repeated)


@pytest.mark.parametrize("width", [1, 16, 50, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_scores_are_those_of_the_best(dtype: torch.dtype, width: int) -> None:
    real_scores_are_those_of_the_best(dtype, width)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30])
def test_scores_of_any_size_have_their_place(size: float) -> None:
    """Very small, very large, of both signs, and far apart: each place is found by its own rank."""
    v = 300
    for e in (torch.randn(v), torch.randn(v).abs(), -torch.randn(v).exp(), torch.randn(v) ** 9):
        e = (e * size).unique()
        right = e.argsort(descending=True)
        own = torch.randperm(len(e)).expand(len(e), -1)
        seeds = torch.arange(200)
        found = torch.stack(
            [rerank_negatives(torch.ones(len(e), 1), e[:, None], own, 10**6, seed=s) for s in seeds]
        )
        assert set(found.flatten().tolist()) == set(right.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 50, 64])
def test_equal_rows_tie_wherever_they_stand(width: int, dtype: torch.dtype) -> None:
    """Own and shared, in any slot: the lowest ids of equal items come first."""
    v = 400
    e = torch.randn(1, width).to(dtype).repeat(v, 1)
    q = torch.randn(30, width).to(dtype)
    own, shared = torch.randint(v, (30, 77)), torch.randint(v, (41,))
    for top_m in (1, 9, 60):
        ours = rerank_negatives(q, e, own, top_m, shared=shared, seed=top_m)
        flat = torch.zeros(30, 1)
        right = expected(flat, torch.zeros(v, 1), own, top_m, shared, seed=top_m)
        assert ours.tolist() == right


def test_threads_change_nothing_and_calls_repeat(threads: int) -> None:  # noqa: F811
    q, e = torch.randn(301, 40), torch.randn(5000, 40)
    own, shared = torch.randint(5000, (301, 60)), torch.randperm(5000)[:90]
    met = SeenItems.from_lists(torch.randint(5000, (301, 20)).tolist())
    for repeated in ("drop", "keep"):
        options = {"shared": shared, "forbidden": met, "repeated": repeated, "seed": 3}
        ours = rerank_negatives(q, e, own, 20, **options)
        assert torch.equal(ours, rerank_negatives(q, e, own, 20, **options))
        before = torch.get_num_threads()
        torch.set_num_threads(3 - threads)
        assert torch.equal(ours, rerank_negatives(q, e, own, 20, **options))
        torch.set_num_threads(before)


def test_many_shared_candidates_pass_in_blocks() -> None:
    """More than one row's scores fill the workspace; long lists of forbidden items."""
    v = 400_000
    q, e = torch.randn(3, 1), torch.randn(v, 1)
    shared = torch.randperm(v)[:300_000]
    gone = [shared[:299_000].tolist(), [], shared[::2].tolist()]
    met = SeenItems.from_lists(gone)
    ours = rerank_negatives(q, e, None, 5, shared=shared, forbidden=met, seed=1)
    scores = (q * e.T).double()
    for row in range(3):
        allowed = torch.zeros(v, dtype=torch.bool)
        allowed[shared] = True
        allowed[torch.tensor(gone[row], dtype=torch.int64)] = False
        best = scores[row].masked_fill(~allowed, -torch.inf).topk(5).indices
        assert int(ours[row]) in best.tolist()


def test_what_nobody_checked_reads_nothing_outside() -> None:
    q, e = whole(6, 4), whole(80, 4)
    own, shared = torch.randint(80, (6, 9)), torch.randint(80, (5,))
    met = SeenItems.from_lists([[1, 2], [3], [4], [5, 6], [], [7]])
    numbers = (torch.tensor(4), torch.tensor(0))
    good = compiled.forward(Problem(q, e, own, shared, met, *numbers, True, 0))
    ids, offsets, slots = met.ids.clone(), met.offsets.clone(), own.clone()
    ids[4] = 10**12  # row 3
    offsets[6] = 10**9  # row 5
    slots[0, 1] = -9
    rows = torch.tensor([0, 1, 99, 3, 4, 5])
    for drop in (True, False):
        ours = compiled.forward(
            Problem(q, e, slots, shared, SeenItems(offsets, ids, rows), *numbers, drop, 0)
        )
        assert ours[[0, 2, 3, 5]].tolist() == [-1] * 4
        if drop:
            assert torch.equal(ours[[1, 4]], good[[1, 4]])
        for outside in (80, -2, 2**62):
            bad = shared.clone()
            bad[2] = outside
            ours = compiled.forward(Problem(q, e, own, bad, met, *numbers, drop, 0))
            assert (ours == -1).all()


def test_opcheck_and_compiled_equals_eager() -> None:
    q, e, own = torch.randn(4, 4), torch.randn(90, 4), torch.randint(90, (4, 7))
    met, shared = SeenItems.from_lists([[3, 3, 80], [], [1], [2]]), torch.tensor([1, 5, 5])
    operator = torch.ops.seqrec_kernels.rerank_negatives.default
    numbers = (torch.tensor(3), torch.tensor(9))
    torch.library.opcheck(operator, (q, e, own, shared, *met, *numbers, True, 0, "native"))

    def call(q: Any, e: Any, own: Any) -> Any:
        return rerank_negatives(q, e, own, 3, shared=shared, forbidden=met, seed=9)

    assert torch.equal(torch.compile(call, fullgraph=True)(q, e, own), call(q, e, own))


PEAK = """
import json, resource, sys
import torch
from seqrec_kernels import backend, native, rerank_negatives

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(2)
b, c, s, v, d = json.loads(sys.argv[1])
q, e = torch.randn(b, d), torch.randn(v, d)
own, shared = torch.randint(v, (b, c)), torch.randperm(v)[:s]
with native.version(sys.argv[2]), backend("native"):
    rerank_negatives(q[:50], e, own[:50], 5, shared=shared[:20])
    before = peak()
    rerank_negatives(q, e, own, 50, shared=shared)
    print(peak() - before)
"""


def test_memory_is_a_workspace_a_thread(version: str) -> None:  # noqa: F811
    """Far below [B, C + S], and so below [B, C, D]; beside it are only the checks of ids."""
    b, c, s, v, d = 4000, 1, 5000, 6000, 16
    done = subprocess.run(
        [sys.executable, "-c", PEAK, json.dumps((b, c, s, v, d)), version],
        env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 4 * b * (c + s) / 8, "the scores of all rows at once are 80 MB"


def test_the_number_of_candidates_does_not_change_what_one_scores() -> None:
    q, e = torch.randn(40, 33), torch.randn(200, 33)
    own = torch.arange(200).expand(40, 200)
    best = rerank_negatives(q, e, own, 1)
    assert torch.equal(rerank_negatives(q, e, None, 1, shared=own[0]), best)
    for cut in (1, 17, 199):
        mixed = rerank_negatives(q, e, own[:, :cut], 1, shared=own[0, cut - 1 :])
        assert torch.equal(mixed, best)
