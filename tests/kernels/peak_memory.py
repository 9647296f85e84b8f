"""What a call adds to the peak of resident memory, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

BEGIN = """
import sys, torch

def peak():
    lines = open("/proc/self/status").readlines()
    return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])

torch.manual_seed(0)
"""


def printed(script: str, *words: str, backend: str) -> float:
    """The number that a script prints; it may ask ``peak()`` for the most bytes there were so far.

    Args:
        script: Python; a small call first loads what stays.
        words: its ``sys.argv[1:]``.
        backend: the implementation it runs.
    """
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, *words],
        env={**os.environ, "SEQREC_KERNELS_BACKEND": backend},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)
