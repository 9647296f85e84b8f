"""What tests of the GPU's programs (csrc/common/program.h) share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from seqrec_kernels import native

REASON = native.CUDA_MISSING if torch.cuda.is_available() else "no CUDA device"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
)


def sanitized(name: str) -> None:
    """Compiles and runs a program of this folder, in which every thread of a block is one of the
    operating system's, under a sanitizer that knows what barriers order; or skips without one.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no g++ and no clang++")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    with tempfile.TemporaryDirectory() as folder:
        program, empty = Path(folder, "program"), Path(folder, "empty.cpp")
        empty.write_text("int main() { return 0; }\n")
        able = subprocess.run([compiler, *flags, empty, "-o", program], capture_output=True)
        if able.returncode or subprocess.run([program], capture_output=True).returncode:
            pytest.skip("no thread sanitizer here")
        source = Path(__file__).with_name(name)
        subprocess.run([compiler, *flags, source, "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr[:3000]
