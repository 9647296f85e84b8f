"""Installing: what is built where, what a wheel holds, and what it declares."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from setup_script import ROOT, load_setup


@pytest.fixture
def setup_module() -> ModuleType:
    return load_setup()


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
    assert lines[0] == "without its part 'host': pybind11 is not installed"
    assert "cpu" in extensions


def test_what_the_compiler_is_told(setup_module: ModuleType) -> None:
    pytest.importorskip("pybind11")
    environ = {"CXX": sys.executable, "CXXFLAGS": '-DQUOTED="a b"'}
    extensions, _ = setup_module.plan(environ)
    for extension in extensions.values():
        assert extension.optional, "a compiler that fails must not fail the install"
        assert "-DQUOTED=a b" in extension.extra_compile_args
        assert all((ROOT / path).is_file() for path in [*extension.sources, *extension.depends])
    assert extensions.keys() == {"host", "cpu"}  # test_cuda_build.py has the third
    macros = dict(extensions["host"].define_macros)
    assert "'-DQUOTED=a b'" in macros["SEQREC_FLAGS"]


def test_every_source_is_built(setup_module: ModuleType) -> None:
    pytest.importorskip("pybind11")
    extensions, _ = setup_module.plan({"CXX": sys.executable})
    built = {source for extension in extensions.values() for source in extension.sources}
    kept = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")}
    assert built == {path for path in kept if not path.startswith("csrc/cuda/")}


def test_a_library_is_named_without_the_python_version(setup_module: ModuleType) -> None:
    """It is no module of one Python: torch loads it by its path."""
    from setuptools import Distribution, Extension

    command = setup_module.BuildNative(Distribution())
    command.extensions = [setup_module.Library("pkg._cpu", []), Extension("pkg._host", [])]
    command.ext_map = {}
    assert command.get_ext_filename("pkg._cpu") == "pkg/_cpu.so"
    assert command.get_ext_filename("_cpu") == "_cpu.so"
    assert command.get_ext_filename("_host").startswith("_host.cpython-")


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
    """The pure Python wheel built from a copy of the tree, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("seqrec", "seqrec_kernels", "csrc", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*build, "--wheel-dir", str(folder), str(source)],
        env={**os.environ, "SEQREC_SKIP_NATIVE": "1"},  # compiling takes a minute, and pip did it
        capture_output=True,
        text=True,
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
    for file in (ROOT / "benchmarks").glob("*.py"):
        assert (wheel / "seqrec" / file.relative_to(ROOT)).is_file(), f"{file} is not in the wheel"
    assert not (wheel / "tests").exists() and not (wheel / "benchmarks").exists()
    assert not list(wheel.rglob("*.so"))
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").is_file()
    assert "seqrec = seqrec.cli:main" in (info / "entry_points.txt").read_text()


def test_bench_measures_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    # every family's file is looked into, one is run
    for file in (ROOT / "benchmarks").glob("*.py"):
        assert "from benchmarks" not in file.read_text(), (
            f"{file} is not found where it is installed"
        )
    words = ["-m", "seqrec.cli", "bench", "catalog_rank", "--shapes", "tiny", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *words, "--out", "here.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "times ours" in done.stdout and "catalog_rank" in done.stdout
    assert "0 wrong" in done.stdout
    kept = json.loads((tmp_path / "here.json").read_text())
    assert kept["command"].startswith("seqrec bench catalog_rank") and kept["cases"]


@pytest.fixture
def installed(setup_module: ModuleType) -> list[str]:
    """The parts that installing this tree here must have built."""
    try:
        metadata.version("seqrec")
    except metadata.PackageNotFoundError:
        pytest.skip("runs from a source tree that is not installed; `make test` installs it")
    if os.environ.get("SEQREC_SKIP_NATIVE") == "1":
        pytest.skip("SEQREC_SKIP_NATIVE=1")
    parts = list(setup_module.plan(os.environ)[0])
    if not parts:
        pytest.skip("no compiler here: an installation without compiled parts is right")
    return parts


def test_the_host_module_says_what_it_was_built_with(installed: list[str]) -> None:
    import torch

    host = importlib.import_module("seqrec_kernels._host")
    info = host.build_info()
    assert set(info) == {
        *("compiler", "standard", "flags", "torch", "python", "pybind11", "parts"),
        *("cuda", "left_out"),
    }
    assert info["torch"] == torch.__version__
    assert info["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert info["standard"] >= 201703
    assert info["parts"].split(",") == installed
    assert bool(info["cuda"]) == ("cuda" in installed)
    assert bool(info["left_out"]) == (len(installed) < 3)
    assert info["flags"].startswith("-std=c++17")


def test_doctor_tells_what_was_built_and_what_was_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from seqrec import doctor
    from seqrec_kernels import native

    host = ModuleType("seqrec_kernels._host")
    told = dict.fromkeys(("compiler", "flags", "torch", "python", "pybind11"), "?")
    monkeypatch.setitem(sys.modules, "seqrec_kernels._host", host)

    def compiled(**info: str) -> str:
        monkeypatch.setattr(host, "build_info", lambda: told | info, raising=False)
        text = "\n".join(doctor.lines())
        return text[text.index("\ncompiled") : text.index("\nto mend")]

    built = {"parts": "host,cpu,cuda", "cuda": "8.0;9.0a by nvcc 13.0", "left_out": ""}
    monkeypatch.setattr(native, "CUDA_MISSING", "this torch has none")
    assert "CUDA for 8.0;9.0a by nvcc 13.0; not loaded: this torch has none\n" in compiled(**built)
    monkeypatch.setattr(native, "CUDA_MISSING", None)
    assert "CUDA for 8.0;9.0a by nvcc 13.0\n" in compiled(**built)
    without = {"parts": "host,cpu", "cuda": "", "left_out": "without its part 'cuda': no nvcc"}
    assert "\n              without its part 'cuda': no nvcc\n" in compiled(**without)
    assert "CUDA" not in compiled(parts="host")  # as built by an earlier version


def test_the_library_loads(installed: list[str]) -> None:
    """A part that fails to compile is left out in silence; not where tests run."""
    import torch

    from seqrec_kernels import native

    assert native.missing() is None
    if "cuda" in installed:
        assert native.CUDA_LIBRARY.exists()
        if torch.version.cuda is not None:
            assert native.CUDA_MISSING is None


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
