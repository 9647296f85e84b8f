"""Re-ranking in CUDA: on a GPU as it is, without one the same program on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_programs import CUDA, REASON, sanitized
from rerank_calls import (
    SHAPES,
    every_call_is_exact,
    every_place_is_drawn_equally_often,
    real_scores_are_those_of_the_best,
    what_is_no_number_is_never_drawn,
    whole,
)
from test_native_rerank_negatives import (  # noqa: F401 (run here as well)
    test_equal_rows_tie_wherever_they_stand,
    test_the_number_of_candidates_does_not_change_what_one_scores,
    test_what_nobody_checked_reads_nothing_outside,
)

from seqrec_kernels import SeenItems, backend, native, rerank_negatives
from seqrec_kernels.ops.rerank_negatives import cuda
from seqrec_kernels.ops.rerank_negatives import native as compiled
from seqrec_kernels.ops.rerank_negatives.problem import Problem

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=str(native.MISSING))


@pytest.fixture(params=["cpu", CUDA], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Has the compiled operator run the GPU's program, on the device where tensors are made."""
    monkeypatch.setattr(compiled, "forward", cuda.forward)
    with torch.device(request.param), backend("native"):
        yield request.param


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_call_is_exact(shape: Any, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "WORKSPACE", 4000)  # some rows at a time
    every_call_is_exact(shape, ties)


def test_what_is_no_number_is_never_drawn() -> None:
    what_is_no_number_is_never_drawn()


@pytest.mark.parametrize("repeated", ["drop", "keep"])
@pytest.mark.parametrize("top_m", [4, 40])
def test_every_place_is_drawn_equally_often(top_m: int, repeated: str) -> None:
    every_place_is_drawn_equally_often(top_m, repeated)


@pytest.mark.parametrize("width", [1, 16, 50, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_scores_are_those_of_the_best(dtype: torch.dtype, width: int) -> None:
    real_scores_are_those_of_the_best(dtype, width)


def test_strided_inputs_and_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    q, e = whole(40, 12), whole(90, 12)
    ids, met = torch.randint(90, (40, 24)), SeenItems.from_lists([[1, 2]] * 5)
    met = met._replace(rows=torch.randint(5, (40,)))
    own, shared = ids[:, ::2], ids[:, 3]
    strided = rerank_negatives(q[:, ::2], e[:, 1::2], own, 4, shared=shared, forbidden=met)
    dense = [t.contiguous() for t in (q[:, ::2], e[:, 1::2], own)]
    monkeypatch.setattr(cuda, "WORKSPACE", 1)
    ours = rerank_negatives(*dense, 4, shared=shared.contiguous(), forbidden=met)
    assert torch.equal(ours, strided)


@pytest.mark.slow
def test_no_barrier_is_missing() -> None:
    sanitized("recall_threads.cpp")


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_on_a_gpu_it_is_native_and_a_graph_can_be_replayed() -> None:
    q, e = torch.randn(20, 7), torch.randn(300, 7)
    assert compiled.unsupported(q, e) is None
    own, shared = torch.randint(300, (20, 30)), torch.randint(300, (9,))
    met = SeenItems.from_lists([[1, 2, 3]] * 20)
    top_m, seed = torch.tensor(5), torch.tensor(1)
    problem = Problem(q, e, own, shared, met, top_m, seed, True, 0)
    cuda.forward(problem)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = cuda.forward(problem)
    seed.fill_(2)
    top_m.fill_(9)
    graph.replay()
    assert torch.equal(found, cuda.forward(problem))
