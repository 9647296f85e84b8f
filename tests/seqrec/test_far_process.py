"""Runs the tests on the watching device in a process of their own, as `far_device` asks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FILES = ["test_far_device.py", "test_captured_step.py", "test_far_sampled.py"]


def test_these_are_all_of_them() -> None:
    users = [p.name for p in HERE.glob("test_*.py") if "from far_device import" in p.read_text()]
    assert sorted(users) == sorted([*FILES, Path(__file__).name])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU they run where they stand")
@pytest.mark.parametrize("file", FILES)
def test_no_step_reads_or_waits_for_the_device(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)],
        env={**os.environ, "SEQREC_FAR_DEVICE": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout.strip().splitlines()[-1]), done.stdout[-2000:]
