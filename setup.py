"""The compiled parts of the package; everything else is in pyproject.toml.

A part is built where what it needs is there, and left out, with its reason in one line, where it is
not: the package works without any of them.  A new part is a function that returns its
``Extension`` or raises ``LeftOut``, and a line in ``PARTS``.

Environment:
    SEQREC_SKIP_NATIVE=1  build nothing.
    SEQREC_FORCE_CUDA=1   an install without the CUDA library is an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib import metadata, util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

Environment = Mapping[str, str]
ROOT = Path(__file__).resolve().parent

# the oldest torch whose stable interface is used, as its headers count: 2.10
TORCH_TARGET = "0x020a000000000000"


class LeftOut(Exception):
    """Why a part is not built here."""


class Library(Extension):
    """Operators against torch's stable interface: no Python module, one file for every Python."""


class BuildNative(build_ext):
    """Names a library after itself, without the Python version that a module's file carries."""

    def get_ext_filename(self, fullname: str) -> str:
        path = fullname.split(".")
        if any(isinstance(e, Library) and e.name.endswith(path[-1]) for e in self.extensions):
            return os.path.join(*path) + ".so"
        return super().get_ext_filename(fullname)


def host(environ: Environment) -> Extension:
    """The pybind11 module; everything else is free of the Python version."""
    if util.find_spec("pybind11") is None:
        raise LeftOut("pybind11 is not installed")
    import pybind11

    flags = ["-std=c++17", "-O2", "-fvisibility=hidden", *shlex.split(environ.get("CXXFLAGS", ""))]
    return Extension(
        "seqrec_kernels._host",
        ["csrc/host.cpp"],
        language="c++",
        include_dirs=[pybind11.get_include()],
        extra_compile_args=flags,
        define_macros=[
            ("SEQREC_FLAGS", _c_string(shlex.join(flags))),
            ("SEQREC_TORCH", _c_string(metadata.version("torch"))),
        ],
        optional=True,  # a compiler that fails leaves the package pure Python
    )


def cpu(environ: Environment) -> Extension:
    """The operators' C++ implementations; each picks its instruction set when it runs."""
    spec = util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    major, minor = (int(part) for part in metadata.version("torch").split(".")[:2])
    if (major, minor) < (2, 10):
        raise LeftOut(f"torch {major}.{minor} is older than 2.10, whose stable interface it needs")
    # no -march: each instruction set has a file of its own, and the processor is asked at run time
    return Library(
        "seqrec_kernels._cpu",
        ["csrc/library.cpp", *_files("csrc/cpu/*.cpp")],
        language="c++",
        depends=_files("csrc/**/*.h"),
        include_dirs=[str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        # named, because nothing else brings them: loading would end in "undefined symbol"
        libraries=["torch_cpu", "c10"],
        extra_compile_args=[
            "-std=c++17",  # what torch's headers need
            "-O3",  # unrolls and vectorises the plain loops beside the kernels
            "-fvisibility=hidden",  # operators register themselves; nothing is looked up by name
            # which products and sums are fused must be the source's choice, not the compiler's
            "-ffp-contract=off",
            # nobody reads errno or floating-point flags, and heeding them keeps code scalar
            *("-fno-math-errno", "-fno-trapping-math"),
            # gcc 12 warns about its own AVX-512 headers
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
            *shlex.split(environ.get("CXXFLAGS", "")),
        ],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        optional=True,
    )


PARTS: dict[str, Callable[[Environment], Extension]] = {"host": host, "cpu": cpu}


def plan(environ: Environment) -> tuple[dict[str, Extension], list[str]]:
    """What is built here, by part, and a line for what is not."""
    if environ.get("SEQREC_SKIP_NATIVE") == "1":
        return {}, ["pure Python: SEQREC_SKIP_NATIVE=1"]
    try:
        _need_torch_and_compiler(environ)
    except LeftOut as reason:
        return {}, [f"pure Python: {reason}"]
    extensions, remarks = {}, []
    for name, part in PARTS.items():
        try:
            extensions[name] = part(environ)
        except LeftOut as reason:
            remarks.append(f"without its part {name!r}: {reason}")
    if "host" in extensions:
        parts = _c_string(",".join(extensions))
        extensions["host"].define_macros.append(("SEQREC_PARTS", parts))
    return extensions, remarks


def _need_torch_and_compiler(environ: Environment) -> None:
    if util.find_spec("torch") is None:
        raise LeftOut("torch is not importable here; install it first, then --no-build-isolation")
    command = environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if shutil.which(shlex.split(command)[0]) is None:
        raise LeftOut(f"no C++ compiler, {command!r} is not on the PATH")


def _files(pattern: str) -> list[str]:
    """Sorted, and relative to this file as setuptools wants them, from wherever it is called."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def _c_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


if __name__ == "__main__":
    built, left_out = plan(os.environ)
    for line in left_out:
        print(f"seqrec installs {line}", file=sys.stderr)
    if os.environ.get("SEQREC_FORCE_CUDA") == "1" and "cuda" not in built:
        reason = left_out[0] if left_out else "this version has no CUDA sources"
        sys.exit(f"SEQREC_FORCE_CUDA=1, but there would be no CUDA library: {reason}")
    setup(ext_modules=list(built.values()), cmdclass={"build_ext": BuildNative})
