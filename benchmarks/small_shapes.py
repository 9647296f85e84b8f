"""Every operator on little inputs: what compute-sanitizer and ncu are pointed at.

python -m benchmarks.small_shapes --device cuda [--unchecked] [--shapes paper]

Each of our implementations that runs there is held to the benchmarks' own gate. Under a tool that
slows everything down, ``--unchecked`` leaves the gates out, whose float64 products are not ours.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

from benchmarks._common import is_ours
from benchmarks.run import DTYPES, FAMILIES

# D: one that fills no block, one that fills it, one that goes through in chunks; the other numbers
# are ragged, and V is cut in several parts
SHAPES = {
    "catalog_cross_entropy": [(70, 1003, 50), (70, 1003, 256)],
    "catalog_rank": [(70, 1003, 50), (70, 1003, 256)],
    "catalog_topk": [(70, 1003, 50), (70, 1003, 256)],
    "contrast": [(70, 33, 50), (70, 33, 256)],
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_shapes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--unchecked", action="store_true", help="run ours, compare nothing")
    parser.add_argument("--shapes", choices=("small", "paper"), default="small")
    options = parser.parse_args(arguments)

    wrong = 0
    for family in FAMILIES:
        module = importlib.import_module(f"benchmarks.test_{family}")
        shapes = SHAPES[family] if options.shapes == "small" else module.SHAPES["paper"][:1]
        for shape in shapes:
            for dtype in DTYPES.values():
                case = module.case(shape, options.device, dtype, compiling=False)
                for name in filter(is_ours, case.rivals):
                    label = f"{case.name}: {name}" + (f" ({case.runs})" if name == "ours" else "")
                    try:
                        if options.unchecked:
                            case.rivals[name]()
                        else:
                            case.gate(name)
                        if options.device == "cuda":
                            torch.cuda.synchronize()
                    except (AssertionError, RuntimeError) as error:
                        wrong += 1
                        print(f"WRONG {label}: {error}", flush=True)
                    else:
                        print(f"{'ran' if options.unchecked else 'right'} {label}", flush=True)
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
