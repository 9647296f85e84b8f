"""Recall by one column in CUDA: on a GPU as it is, without one the same programs on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu_programs import CUDA, REASON
from test_max_index_recall import (
    SHAPES,
    VALUES,
    any_strides_and_any_dtype,
    every_n_is_exact,
    table,
    the_column_is_the_largest_not_the_longest,
    what_is_no_number_is_never_chosen,
)

from seqrec_kernels import backend, max_index_recall, native
from seqrec_kernels.ops.max_index_recall import cuda
from seqrec_kernels.ops.max_index_recall import native as compiled

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=str(native.MISSING))
PART = cuda.PART


@pytest.fixture(params=["cpu", CUDA], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Has the compiled operator run the GPU's programs, on the device where tensors are made."""
    monkeypatch.setattr(compiled, "forward", cuda.forward)
    with torch.device(request.param), backend("native"):
        yield request.param


@pytest.fixture(params=["select", "levels", "sort"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one block or by several levels of them, or by sorting, whatever n is."""
    monkeypatch.setattr(cuda, "KEYS", {"levels": 9}.get(request.param, cuda.KEYS))
    monkeypatch.setattr(cuda, "ROOM", {"sort": 0}.get(request.param, cuda.ROOM))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_n_is_exact(way: None, shape: tuple[int, int, int], values: str) -> None:
    every_n_is_exact(shape, values)


def test_what_is_no_number_is_never_chosen(way: None) -> None:
    what_is_no_number_is_never_chosen()


def test_the_column_is_the_largest_not_the_longest(way: None) -> None:
    the_column_is_the_largest_not_the_longest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_strides_and_any_dtype(way: None, dtype: torch.dtype) -> None:
    any_strides_and_any_dtype(dtype)


@pytest.mark.parametrize("items", [PART - 1, PART, PART + 1, 40_000])
@pytest.mark.parametrize("values", ["real", "rising", "one", "holes"])
def test_in_the_sizes_it_ships_with(items: int, values: str) -> None:
    q, e = torch.randn(700, 3), table(items, 3, values)
    for n in (1, 100, cuda.ROOM, cuda.ROOM + 1, items):
        ours = max_index_recall(q, e, min(n, items))
        assert torch.equal(ours, max_index_recall(q, e, min(n, items)))
        with backend("reference"):
            assert torch.equal(ours, max_index_recall(q, e, min(n, items)))


def test_rows_summed_by_many_blocks_have_the_mean_of_all() -> None:
    q = torch.zeros(9 * cuda.ROWS + 5, 70)
    q[:, 67] = 1.0
    q[-1, 3] = len(q) + 1.0  # the last row decides
    e = torch.randn(50, 70)
    assert torch.equal(max_index_recall(q, e, 9), e[:, 3].topk(9).indices)
    assert torch.equal(max_index_recall(q[:-1], e, 9), e[:, 67].topk(9).indices)


def test_items_beyond_2_31(way: None) -> None:
    # address space on the CPU, of which a few pages are ever touched; 8 GiB on a GPU
    stride = 2**30 + 1
    far = torch.empty(2 * stride + 5).as_strided((3, 5), (stride, 1))
    near = torch.randn(3, 5)
    far.copy_(near)
    q = torch.randn(4, 5)
    assert torch.equal(max_index_recall(q, far, 3), max_index_recall(q, near, 3))


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_on_a_gpu_it_is_native_and_a_graph_can_be_replayed() -> None:
    q, e = torch.randn(20, 7), torch.randn(3000, 7)
    assert compiled.unsupported(q, e) is None
    for n in (5, 2000):
        cuda.forward(q, e, n, 1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = cuda.forward(q, e, n, 1)
        q.copy_(torch.randn(20, 7))
        graph.replay()
        assert torch.equal(found, cuda.forward(q, e, n, 1))
