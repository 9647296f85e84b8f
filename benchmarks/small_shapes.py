"""Every operator on little inputs: what compute-sanitizer and ncu are pointed at.

python -m benchmarks.small_shapes --device cuda [--unchecked] [--shapes paper]

Each of our implementations that runs there is held to the benchmarks' own gate. Under a tool that
slows everything down, ``--unchecked`` leaves the gates out, whose float64 products are not ours.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial

import torch

from seqrec_kernels import backend, hard_negative_info_nce

from ._common import is_ours
from .run import DTYPES, FAMILIES
from .test_jagged_attention import Shape as Attention
from .test_max_index_recall import Shape as Recall
from .test_rerank_negatives import Shape as Rerank
from .test_sampled import Shape as Sampled

# D: one that fills no block, one that fills it, one that goes through in chunks; the other numbers
# are ragged, and V is cut in several parts
SHAPES = {
    "catalog_cross_entropy": [(70, 1003, 50), (70, 1003, 256)],
    "catalog_rank": [(70, 1003, 50), (70, 1003, 256)],
    "catalog_topk": [(70, 1003, 50), (70, 1003, 256)],
    "contrast": [(70, 33, 50), (70, 33, 256)],
    # the third so many that the GPU's program sorts the column
    "max_index_recall": [
        Recall(70, 1003, 50, 33),
        Recall(70, 1003, 256, 1003),
        Recall(70, 5003, 50, 2000),
    ],
    "rerank_negatives": [
        Rerank(70, 33, 40, 1003, 50, 9, "keep"),
        Rerank(70, 133, 7, 1003, 256, 60, "drop"),
    ],
    "sampled": [
        Sampled("softmax", 70, 33, 1003, 50),
        Sampled("bce", 70, 33, 1003, 256),
        Sampled("bpr", 70, 133, 1003, 50, shared=True),
    ],
    "jagged_attention": [Attention(9, 20, 70, 50, 1, 0.3), Attention(5, 90, 200, 128, 2)],
}


def mixed_by_chance(device: str, dtype: torch.dtype, checked: bool) -> None:
    """What the benchmark of the contrastive loss leaves out: drawn ratios, the paper's form."""
    torch.manual_seed(0)
    sides = [(torch.randn(n, 50, device=device) / 3).to(dtype).requires_grad_()
             for n in (70, 70, 333, 33)]  # fmt: skip
    ids = [torch.arange(n, device=device) % 7 for n in (70, 333)]

    def loss() -> torch.Tensor:
        return hard_negative_info_nce(
            *sides[:3], noise=sides[3], anchor_ids=ids[0], negative_ids=ids[1],
            focal_scale=3.0, margin=0.2, mix=(0.1, 0.9), form="paper",
        )  # fmt: skip

    ours = loss()
    found = torch.autograd.grad(ours, sides)
    if checked:
        with backend("reference"):
            dense = loss()
        true = (dense, *torch.autograd.grad(dense, sides))
        for our, exact in zip((ours, *found), true, strict=True):
            unit = torch.finfo(our.dtype).eps * float(exact.detach().abs().max())
            torch.testing.assert_close(our, exact, rtol=0, atol=4 * unit + 1e-5)


def fails(label: str, call: Callable[[], object], device: str, checked: bool) -> bool:
    """Whether a call is wrong, printed beside its label."""
    try:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    except (AssertionError, RuntimeError) as error:
        print(f"WRONG {label}: {error}", flush=True)
        return True
    print(f"{'right' if checked else 'ran'} {label}", flush=True)
    return False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_shapes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--unchecked", action="store_true", help="run ours, compare nothing")
    parser.add_argument("--shapes", choices=("small", "paper"), default="small")
    options = parser.parse_args(arguments)
    device, checked, small = options.device, not options.unchecked, options.shapes == "small"

    wrong = 0
    for family in FAMILIES:
        module = importlib.import_module(f"{__package__}.test_{family}")
        for shape in SHAPES[family] if small else module.SHAPES["paper"][:1]:
            for dtype in DTYPES.values():
                case = module.case(shape, device, dtype, compiling=False)
                for name in filter(is_ours, case.rivals):
                    label = f"{case.name}: {name}" + (f" ({case.runs})" if name == "ours" else "")
                    call = partial(case.gate, name) if checked else case.rivals[name]
                    wrong += fails(label, call, device, checked)
    for dtype in DTYPES.values() if small else ():
        call = partial(mixed_by_chance, device, dtype, checked)
        wrong += fails(f"contrast with drawn ratios, {dtype}", call, device, checked)
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
