"""The best 20 items with seen items left out, against the dense score matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec_kernels import SeenItems, TopK, catalog_topk

from ._common import Case, benchmarked, implementations, is_ours
from .test_catalog_rank import slack

SHAPES = {
    "tiny": [(24, 300, 16)],
    "paper": [(512, 50_000, 64), (1024, 12_101, 64)],
    "wide": [(1024, 12_101, 32), (1024, 12_101, 128), (1024, 12_101, 256)],
    "large": [(512, 100_000, 64), (512, 100_000, 256)],
    "million": [(256, 1_000_000, 64)],
}
K, SEEN = 20, 8
CHUNK = 1 << 14  # items whose scores the chunked peer holds at once


def faiss_search(q: Tensor, e: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Scores and ids of the k best by faiss' exact index.

    The index, a copy of the items, is made here: neither its time nor its memory is counted.

    Raises:
        RuntimeError: why it cannot run on these; or ImportError.
    """
    if q.device.type != "cpu" or q.dtype != torch.float32:
        raise RuntimeError("faiss-cpu takes float32 on the CPU only")
    faiss: Any = import_module("faiss")
    index = faiss.IndexFlatIP(e.shape[1])
    index.add(e.numpy())

    def search(k: int) -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())  # it has an OpenMP of its own
        scores, ids = index.search(q.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    return search


def case(
    shape: tuple[int, int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiling: bool = True,
) -> Case:
    b, v, d = shape
    torch.manual_seed(0)
    q, e = (torch.randn(n, d).to(device, dtype) for n in (b, v))
    seen = SeenItems.from_lists(torch.randint(v, (b, SEEN)).tolist(), device)
    rows = torch.arange(b, device=device).repeat_interleave(SEEN)
    met = seen.ids.reshape(b, SEEN)

    def dense() -> Tensor:
        matrix = q @ e.T
        matrix[rows, seen.ids] = -torch.inf
        return torch.topk(matrix, K).indices

    def chunked() -> Tensor:
        """The best K + SEEN of each chunk, merged, and seen ones taken out at the end."""
        values, ids = [], []
        for first in range(0, v, CHUNK):
            part = q @ e[first : first + CHUNK].T
            best = torch.topk(part, min(K + SEEN, part.shape[1]))
            values.append(best.values)
            ids.append(best.indices + first)
        return unseen(torch.cat(values, 1), torch.cat(ids, 1))

    def unseen(value: Tensor, found: Tensor) -> Tensor:
        """The best K of some that hold the best K + SEEN."""
        value = value.masked_fill((found[:, :, None] == met[:, None, :]).any(2), -torch.inf)
        return found.gather(1, torch.topk(value, K).indices)

    @cache
    def exact() -> Tensor:
        matrix = q.double() @ e.double().T
        matrix[rows, seen.ids] = -torch.inf
        return matrix

    def gate(rival: str) -> None:
        found = rivals[rival]()
        allowed = slack(q, e, exact(), is_ours(rival))
        best = exact().topk(K).values
        ids = found.ids if isinstance(found, TopK) else found
        assert isinstance(ids, Tensor) and ids.shape == (b, K)
        ordered = ids.sort(1).values
        assert (ordered >= 0).all() and (ordered[:, 1:] > ordered[:, :-1]).all(), "not K items"
        missed = best - exact().gather(1, ids)
        assert (missed <= allowed).all(), f"misses the best by {float(missed.max()):.2e}"
        if isinstance(found, TopK):
            assert ((found.scores - best).abs() <= allowed).all(), "scores are off"

    runs, rivals, left_out = implementations(
        "catalog_topk", q, e, lambda: catalog_topk(q, e, K, seen=seen)
    )
    rivals |= {"dense + mask + topk": dense, "chunks + topk + mask": chunked}
    try:
        search = faiss_search(q, e)
        rivals["faiss, index at hand"] = lambda: unseen(*search(K + SEEN))
    except (ImportError, RuntimeError) as error:
        left_out["faiss, index at hand"] = str(error)
    return Case(
        "catalog_topk",
        f"k={K} B={b} V={v} D={d}, {SEEN} seen items a row",
        dtype,
        runs,
        rivals,
        left_out,
        gate,
        operations=2 * b * v * d,
        bytes=(b + v) * d * dtype.itemsize + 8 * b * (SEEN + 1) + 12 * b * K,
    )


@pytest.mark.parametrize(
    "rival",
    [
        "ours",
        "seqrec blocked",
        "dense + mask + topk",
        "chunks + topk + mask",
        "faiss, index at hand",
    ],
)
@pytest.mark.parametrize("shape", SHAPES["paper"], ids=str)
def test_catalog_topk(
    benchmark: Callable[..., object], shape: tuple[int, int, int], rival: str
) -> None:
    made = case(shape)
    benchmarked(benchmark, made, rival)
