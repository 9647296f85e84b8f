"""The public logs, for the tests that need them, and how threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# As the command does, and before torch is loaded: threads that spin while they wait made these
# tests eight times as long on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_log(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``real_log("Beauty.txt")``: the path of an unpacked log.

    The packed logs are no part of the repository: they lie in ``$SEQREC_SHARED`` or beside it, in
    ``../shared``. Where they are absent the test is skipped.
    """
    shared = Path(os.environ.get("SEQREC_SHARED", ROOT.parent / "shared"))
    unpacked: list[Path] = []

    def find(name: str) -> Path:
        script = shared / "data" / "unpack.py"
        if not (shared / "data" / "seq" / f"{name}.xz").is_file():
            pytest.skip(f"the log {name} is not in {shared} (SEQREC_SHARED names another folder)")
        if not unpacked:
            folder = tmp_path_factory.mktemp("logs")
            command = [sys.executable, script, folder, "--source", shared / "data" / "seq"]
            subprocess.run(command, check=True, capture_output=True)
            unpacked.append(folder)
        return unpacked[0] / name

    return find
