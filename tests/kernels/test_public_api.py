"""What the package offers, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import torch

import seqrec_kernels
from seqrec_kernels import SeenItems

PUBLIC = {
    "Rank", "SeenItems", "TopK", "ascend_noise", "backend", "bce_loss", "bpr_loss",
    "catalog_cross_entropy", "catalog_rank", "catalog_topk", "focal_info_nce",
    "hard_negative_info_nce", "info_nce", "jagged_attention", "max_index_recall", "nn",
    "rank_metrics", "rerank_negatives", "sampled_softmax_loss",
}  # fmt: skip


def test_the_public_names() -> None:
    assert set(seqrec_kernels.__all__) >= PUBLIC
    for name in seqrec_kernels.__all__:
        assert inspect.getdoc(getattr(seqrec_kernels, name)), name


def test_the_signatures_of_the_contract() -> None:
    def signature(function: object) -> str:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return ", ".join(
            ("*" if p.kind is p.KEYWORD_ONLY else "")
            + p.name
            + ("" if p.default is p.empty else f"={p.default!r}")
            for p in parameters
        )

    assert signature(seqrec_kernels.catalog_cross_entropy) == (
        "queries, items, targets, weights=None, *item_bias=None, *first_item=0, "
        "*temperature=1.0, *reduction='mean'"
    )
    assert signature(seqrec_kernels.catalog_rank) == (
        "queries, items, targets, *item_bias=None, *first_item=0, *seen=None, *seen_score=None"
    )
    assert signature(seqrec_kernels.catalog_topk) == (
        "queries, items, k, *item_bias=None, *first_item=0, *seen=None"
    )
    contrast = "anchors, positives, negatives, *noise=None, *anchor_ids=None, *negative_ids=None, "
    assert signature(seqrec_kernels.info_nce) == contrast + "*temperature=1.0, *reduction='mean'"
    assert signature(seqrec_kernels.focal_info_nce) == (
        contrast + "*temperature=1.0, *reduction='mean', *focal_scale, *margin=0.0"
    )
    assert signature(seqrec_kernels.hard_negative_info_nce) == (
        contrast + "*temperature=1.0, *reduction='mean', *focal_scale=None, *margin=0.0, *mix=0.4, "
        "*mix_weight=0.1, *seed=0, *form='official'"
    )
    assert signature(seqrec_kernels.ascend_noise) == (
        "anchors, positives, negatives, noise, *anchor_ids=None, *negative_ids=None, "
        "*temperature=1.0, *steps=4, *step_size=0.001"
    )
    sampled = "queries, items, positives, negatives, *temperature=1.0, *log_q=None, "
    sampled += "*drop_hits=False, *reduction='mean'"
    assert signature(seqrec_kernels.sampled_softmax_loss) == sampled
    assert signature(seqrec_kernels.bpr_loss) == sampled
    assert signature(seqrec_kernels.bce_loss) == sampled + ", *beta=1.0"
    assert signature(seqrec_kernels.max_index_recall) == "queries, items, n, *first_item=0"
    assert signature(seqrec_kernels.rerank_negatives) == (
        "queries, items, candidates, top_m, *shared=None, *forbidden=None, *repeated='drop', "
        "*first_item=0, *seed=0"
    )
    assert signature(seqrec_kernels.rank_metrics) == "rank, ks=(5, 10, 20), ties='mean'"
    assert signature(seqrec_kernels.jagged_attention) == (
        "queries, keys, values, offsets, *heads=1, *causal=True, *last=False, *dropout=0.0, "
        "*seed=0, *max_length=None"
    )
    assert signature(seqrec_kernels.SeenItems) == "offsets, ids, rows=None"


def test_importing_is_lean() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import seqrec_kernels\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'triton', 'seqrec', 'polars', 'pandas', 'scipy', 'pybind11'}))\n"
        "print(torch.cuda.is_initialized(), 'torch.distributed.tensor' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False False"]


def test_seen_items_from_lists() -> None:
    seen = SeenItems.from_lists([[3, 1], [], [7]])
    assert seen.offsets.tolist() == [0, 2, 2, 3] and seen.ids.tolist() == [3, 1, 7]
    assert seen.offsets.dtype == seen.ids.dtype == torch.int64 and seen.rows is None
    none = SeenItems.from_lists([])
    assert none.offsets.tolist() == [0] and none.ids.shape == (0,)
    assert none.ids.dtype == torch.int64
