"""Runs the tests of the triton kernels interpreted, where there is no GPU and where there is one.

Triton reads ``TRITON_INTERPRET`` when it is imported, and a call on the CPU then goes to triton:
both want a process of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent
FAMILIES = [
    *("catalog_cross_entropy", "catalog_rank", "catalog_topk", "contrast"),
    *("jagged_attention", "random_bits"),
]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_right_when_interpreted(family: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header",
         str(HERE / f"test_triton_{family}.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    assert re.search(r"\d+ passed", last) and "skipped" not in last, last


def test_neither_the_package_nor_a_call_on_the_cpu_imports_triton() -> None:
    code = (
        "import sys, torch, seqrec_kernels as k\n"
        "q, e, y = torch.randn(3, 4), torch.randn(9, 4), torch.tensor([1, 2, 3])\n"
        "k.catalog_cross_entropy(q, e, y); k.catalog_rank(q, e, y); k.catalog_topk(q, e, 2)\n"
        "from seqrec_kernels.backend import report\n"
        "assert report()['catalog_rank']['triton'] == 'queries are on cpu'\n"
        "assert 'triton' not in sys.modules\n"
    )
    given = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=given, cwd=HERE.parent.parent)
