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

from setuptools import Extension, setup

Environment = Mapping[str, str]


class LeftOut(Exception):
    """Why a part is not built here."""


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


PARTS: dict[str, Callable[[Environment], Extension]] = {"host": host}


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
    for extension in extensions.values():
        extension.define_macros.append(("SEQREC_PARTS", _c_string(",".join(extensions))))
    return extensions, remarks


def _need_torch_and_compiler(environ: Environment) -> None:
    if util.find_spec("torch") is None:
        raise LeftOut("torch is not importable here; install it first, then --no-build-isolation")
    command = environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if shutil.which(shlex.split(command)[0]) is None:
        raise LeftOut(f"no C++ compiler, {command!r} is not on the PATH")


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
    setup(ext_modules=list(built.values()))
