"""What is written beside a number about how it was made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from seqrec import provenance


def git(directory: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(directory), *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree with one commit, which the package believes to run from."""
    (tmp_path / "seqrec").mkdir()
    source = tmp_path / "seqrec" / "provenance.py"
    source.write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(source))
    return tmp_path


def test_the_commit_of_the_tree_and_whether_it_was_changed(tree: Path) -> None:
    head = git(tree, "rev-parse", "HEAD")
    assert provenance.commit() == head
    (tree / "untracked.txt").write_text("a run's output is no change")
    assert provenance.commit() == head
    (tree / "seqrec" / "provenance.py").write_text("two\n")
    assert provenance.commit() == f"{head}-dirty"


def test_an_installed_copy_names_no_commit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not that of a repository the environment happens to stand in."""
    inside = tree / "venv" / "site-packages" / "seqrec" / "provenance.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert provenance.commit() is None


def test_without_git_or_with_a_git_that_hangs_there_is_no_commit(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tree / "nowhere"))
        assert provenance.commit() is None

    def hangs(*args: Any, **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired("git", kwargs["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert provenance.commit() is None


def test_versions_are_those_that_run() -> None:
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert {"numpy", "polars", "safetensors"} <= found.keys()
    assert all(found.values())


def test_a_package_that_is_absent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package", "numpy"))
    assert set(provenance.versions()) == {"python", "numpy"}


def test_hardware_names_processor_threads_and_device() -> None:
    found = provenance.hardware(torch.device("cpu"))
    assert found["device"] == "cpu" and found["cpu"]
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert "gpu" not in found
    json.dumps(found)
