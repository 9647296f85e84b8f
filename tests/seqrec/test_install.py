"""Installing: what is built where, what a wheel holds, and what it declares."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_module() -> ModuleType:
    """setup.py, loaded without running it."""
    spec = importlib.util.spec_from_file_location("seqrec_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hide(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let `module` find every package but these."""
    find = importlib.util.find_spec
    monkeypatch.setattr(module.util, "find_spec", lambda n: None if n in names else find(n))


def test_skip_native_builds_nothing(setup_module: ModuleType) -> None:
    assert setup_module.plan({"SEQREC_SKIP_NATIVE": "1"}) == (
        {},
        ["pure Python: SEQREC_SKIP_NATIVE=1"],
    )


def test_without_torch_nothing_is_built(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(setup_module, monkeypatch, "torch")
    extensions, (line,) = setup_module.plan(os.environ)
    assert extensions == {}
    assert line.startswith("pure Python: torch is not importable here")


def test_without_a_compiler_nothing_is_built(setup_module: ModuleType) -> None:
    extensions, (line,) = setup_module.plan({"CXX": "no-such-compiler -m64"})
    assert extensions == {}
    assert line == "pure Python: no C++ compiler, 'no-such-compiler -m64' is not on the PATH"


def test_without_pybind11_only_the_host_module_is_left_out(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(setup_module, monkeypatch, "pybind11")
    extensions, lines = setup_module.plan({"CXX": sys.executable})  # any program will do
    assert "host" not in extensions
    assert lines == ["without its part 'host': pybind11 is not installed"]


def test_what_the_host_module_is_told(setup_module: ModuleType) -> None:
    pytest.importorskip("pybind11")
    environ = {"CXX": sys.executable, "CXXFLAGS": '-DQUOTED="a b"'}
    extensions, lines = setup_module.plan(environ)
    macros = dict(extensions["host"].define_macros)
    assert macros["SEQREC_PARTS"] == f'"{",".join(extensions)}"'
    assert "'-DQUOTED=a b'" in macros["SEQREC_FLAGS"]
    assert extensions["host"].optional, "a compiler that fails must not fail the install"
    assert all((ROOT / source).is_file() for e in extensions.values() for source in e.sources)
    assert lines == []


def test_forced_cuda_that_cannot_be_built_is_an_error() -> None:
    environ = {**os.environ, "SEQREC_FORCE_CUDA": "1", "SEQREC_SKIP_NATIVE": "1"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "SEQREC_FORCE_CUDA=1, but there would be no CUDA library" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel built from a copy of the tree, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("seqrec", "seqrec_kernels", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*build, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("seqrec-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    yield folder / "unpacked"


def test_a_wheel_holds_everything_the_packages_need(wheel: Path) -> None:
    for package in ("seqrec", "seqrec_kernels"):
        for pattern in ("*.py", "*.toml", "py.typed"):
            for file in (ROOT / package).rglob(pattern):
                assert (wheel / file.relative_to(ROOT)).is_file(), f"{file} is not in the wheel"
    assert not (wheel / "tests").exists()
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").is_file()
    assert "seqrec = seqrec.cli:main" in (info / "entry_points.txt").read_text()


def test_the_host_module_says_what_it_was_built_with(wheel: Path, setup_module: ModuleType) -> None:
    built = list((wheel / "seqrec_kernels").glob("_host.*"))
    if "host" not in setup_module.plan(os.environ)[0]:
        assert built == []
        pytest.skip("no compiler or no pybind11 here: a wheel without compiled parts is right")
    (library,) = built
    spec = importlib.util.spec_from_file_location("_host", library)
    assert spec is not None and spec.loader is not None
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    import torch

    info = host.build_info()
    assert set(info) == {"compiler", "standard", "flags", "torch", "python", "pybind11", "parts"}
    assert info["torch"] == torch.__version__
    assert info["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert info["standard"] >= 201703
    assert info["parts"].split(",")[0] == "host"
    assert info["flags"].startswith("-std=c++17")


def test_what_the_package_asks_for() -> None:
    """An isolated build would fetch a second torch; upper bounds break installs a year later."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["requires"] == ["setuptools>=77"]
    assert project["project"]["dependencies"] == ["torch>=2.10", "numpy", "safetensors", "polars"]
    extras = project["project"]["optional-dependencies"]
    assert not any("<" in one or "==" in one for extra in extras.values() for one in extra)


def test_the_tested_torch_is_pinned_in_one_place() -> None:
    pin = "torch==" + "2.13.0"
    files = subprocess.run(
        ["git", "grep", "--fixed-strings", "--files-with-matches", pin],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if files.returncode > 1:
        pytest.skip("not a git checkout")
    assert files.stdout.split() == ["Makefile"]
