"""The compiled parts of the package; everything else is in pyproject.toml.

A part is built where what it needs is there, and left out, with its reason in one line, where it is
not: the package works without any of them.  A new part is a function that returns its
``Extension`` or raises ``LeftOut``, and a line in ``PARTS``.

Environment:
    SEQREC_SKIP_NATIVE=1         build nothing.
    SEQREC_FORCE_CUDA=1          an install without the CUDA library is an error.
    SEQREC_CUDA_ARCHITECTURES    what the CUDA library is compiled for, as TORCH_CUDA_ARCH_LIST has
                                 it: "8.0;9.0a;10.0+PTX", which is the default as far as the nvcc
                                 knows it. +PTX also serves what comes after.
    CUDA_HOME                    the toolkit whose nvcc is taken; without it the one on the PATH.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib import metadata, util
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

Environment = Mapping[str, str]
ROOT = Path(__file__).resolve().parent

# the oldest torch whose stable interface is used, as its headers count: 2.10
TORCH_TARGET = "0x020a000000000000"


class LeftOut(Exception):
    """Why a part is not built here."""


class Library(Extension):
    """Operators against torch's stable interface: no Python module, one file for every Python."""


class CudaLibrary(Library):
    """A library of sources that nvcc compiles. torch's CUDAExtension needs a CUDA build of torch;
    its headers and this are enough.
    """

    nvcc = ""
    description = ""  # the architectures, and the nvcc


class BuildNative(build_ext):
    """Builds the libraries, and then the host module, which tells how that went."""

    remarks: tuple[str, ...] = ()  # what was left out before, a line each

    def get_ext_filename(self, fullname: str) -> str:
        """A library is named after itself, without the Python version of a module's file."""
        path = fullname.split(".")
        if any(isinstance(e, Library) and e.name.endswith(path[-1]) for e in self.extensions):
            return os.path.join(*path) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        everything, self.left_out = self.extensions, list(self.remarks)
        self.extensions = [e for e in everything if isinstance(e, Library)]
        self.built = list(self.extensions)
        super().build_extensions()
        self.extensions = [e for e in everything if not isinstance(e, Library)]
        for host in self.extensions:
            cuda = [e.description for e in self.built if isinstance(e, CudaLibrary)]
            parts = [e.name.rpartition("._")[2] for e in (host, *self.built)]
            host.define_macros += [
                ("SEQREC_PARTS", _c_string(",".join(parts))),
                ("SEQREC_CUDA", _c_string("".join(cuda))),
                ("SEQREC_LEFT_OUT", _c_string("; ".join(self.left_out))),
            ]
            # so that it is compiled anew with them
            host.depends += [self.get_ext_fullpath(e.name) for e in self.built]
        super().build_extensions()
        self.extensions = everything

    def build_extension(self, ext: Extension) -> None:
        try:
            if isinstance(ext, CudaLibrary):
                self.build_cuda(ext)
            else:
                super().build_extension(ext)
        except Exception as error:
            if ext in self.built:
                self.built.remove(ext)
            what = " ".join(str(error).split())
            self.left_out.append(f"without its part {ext.name.rpartition('._')[2]!r}: {what}")
            raise  # for setuptools to tell, and to end it where the part is not optional

    def build_cuda(self, ext: CudaLibrary) -> None:
        """Compiles and links in one call; what nvcc and ptxas say is left in ``nvcc.log``."""
        output = Path(self.get_ext_fullpath(ext.name))
        folder = Path(self.build_temp, "cuda")
        # which chips that file is for: the dates of sources do not tell
        told = folder / f"{output.as_posix().replace('/', '-')}.txt"
        fresh = told.exists() and told.read_text() == ext.description
        if fresh and not (self.force or newer_group([*ext.sources, *ext.depends], str(output))):
            return
        for needed in (folder, output.parent):
            needed.mkdir(parents=True, exist_ok=True)
        if not any(Path(path, "libtorch_cuda.so").exists() for path in ext.library_dirs):
            # A CPU build of torch. The library has to ask for the file where it is loaded, which
            # is where torch has it; here an empty one of that name takes its place.
            name = "libtorch_cuda.so"
            stub = [
                "-shared",
                f"-Wl,-soname,{name}",
                "-o",
                str(folder / name),
                "-x",
                "c",
                os.devnull,
            ]
            self.spawn([*_compiler(os.environ), *stub])
        done = subprocess.run(
            [ext.nvcc, "-shared", "-o", str(output), *ext.sources]
            + [f"-I{path}" for path in ext.include_dirs]
            + [f"-D{name}={value}" for name, value in ext.define_macros]
            + ext.extra_compile_args
            + [f"-L{path}" for path in (*ext.library_dirs, folder)]
            + [f"-l{name}" for name in ext.libraries],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        (folder / "nvcc.log").write_text(done.stdout)
        if done.returncode != 0:
            said = [line for line in done.stdout.splitlines() if line.strip()]
            errors = [line for line in said if "error" in line] or said[-1:] or ["it says nothing"]
            raise CompileError(f"nvcc fails with status {done.returncode}: {errors[0]}")
        told.write_text(ext.description)


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
    torch = _torch()
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


def cuda(environ: Environment) -> Extension:
    """The operators' CUDA implementations, for several chips in one file."""
    torch = _torch()
    home = environ.get("CUDA_HOME")
    path = os.path.join(home, "bin") if home else environ.get("PATH", os.defpath)
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        raise LeftOut(f"no nvcc in {path}" if home else "no nvcc on the PATH, and no CUDA_HOME")
    release = re.search(r"release (\d+)\.(\d+)", _said_by(nvcc, "--version"))
    if release is None:
        raise LeftOut(f"{nvcc} --version names no release")
    # the source is read, because importing torch takes seconds
    with_cuda = re.search(r"^cuda\b.*= '(\d+)", (torch / "version.py").read_text(), re.MULTILINE)
    if with_cuda is not None and with_cuda[1] != release[1]:
        raise LeftOut(f"nvcc is of CUDA {release[1]}, and torch of CUDA {with_cuda[1]}")
    architectures = _architectures(environ, nvcc)
    library = CudaLibrary(
        "seqrec_kernels._cuda",
        _files("csrc/cuda/*.c*"),
        depends=[*_files("csrc/common/*.h"), *_files("csrc/cuda/*.h")],
        include_dirs=[str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cuda", "torch_cpu", "c10"],
        extra_compile_args=[
            *("-std=c++17", "-O3", "--threads", "4"),
            "--fmad=false",  # as -ffp-contract=off: a score is to have the CPU's bits
            "-Xptxas=-v",
            "--cudart=shared",  # the one torch has loaded, so that both have one current device
            *(f"-gencode={code}" for name in architectures for code in _gencode(name)),
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            "-Xlinker=--no-as-needed",  # or the empty libtorch_cuda.so would be dropped again
        ],
        optional=environ.get("SEQREC_FORCE_CUDA") != "1",
    )
    library.nvcc = nvcc
    library.description = f"{';'.join(architectures)} by nvcc {release[1]}.{release[2]}"
    library.define_macros = [
        ("USE_CUDA", "1"),  # what torch's headers go by
        ("TORCH_TARGET_VERSION", TORCH_TARGET),
        ("SEQREC_CUDA", _c_string(library.description)),
    ]
    return library


PARTS: dict[str, Callable[[Environment], Extension]] = {"host": host, "cpu": cpu, "cuda": cuda}


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
    return extensions, remarks


def _need_torch_and_compiler(environ: Environment) -> None:
    if util.find_spec("torch") is None:
        raise LeftOut("torch is not importable here; install it first, then --no-build-isolation")
    command = _compiler(environ)
    if shutil.which(command[0]) is None:
        raise LeftOut(f"no C++ compiler, {shlex.join(command)!r} is not on the PATH")


def _compiler(environ: Environment) -> list[str]:
    return shlex.split(environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def _torch() -> Path:
    """Where torch is; it must be one whose stable interface is enough."""
    spec = util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    major, minor = (int(part) for part in metadata.version("torch").split(".")[:2])
    if (major, minor) < (2, 10):
        raise LeftOut(f"torch {major}.{minor} is older than 2.10, whose stable interface it needs")
    return Path(spec.origin).parent


def _said_by(nvcc: str, question: str) -> str:
    done = subprocess.run([nvcc, question], capture_output=True, text=True)
    if done.returncode != 0:
        raise LeftOut(f"{nvcc} {question} fails with status {done.returncode}")
    return done.stdout


def _architectures(environ: Environment, nvcc: str) -> list[str]:
    """Entries like "9.0a" or "10.0+PTX"."""
    wanted = environ.get("SEQREC_CUDA_ARCHITECTURES")
    if wanted:
        entries = re.split(r"[;,\s]+", wanted.strip())
        for entry in entries:
            if re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry) is None:
                raise LeftOut(
                    f"SEQREC_CUDA_ARCHITECTURES has {entry!r}; write it like 9.0a or 8.0+PTX"
                )
        return entries
    known = _said_by(nvcc, "--list-gpu-code").split()
    entries = [e for e in ("8.0", "9.0a", "10.0") if f"sm_{_number(e).rstrip('a')}" in known]
    if not entries:
        raise LeftOut(f"{nvcc} compiles for none of sm_80, sm_90 and sm_100")
    # the code of a chip with an "a" serves no other; what follows needs PTX of one without
    if entries[-1].endswith("a"):
        entries[-1:] = [entries[-1], entries[-1].rstrip("a")]
    return [*entries[:-1], f"{entries[-1]}+PTX"]


def _number(entry: str) -> str:
    return entry.removesuffix("+PTX").replace(".", "")


def _gencode(entry: str) -> list[str]:
    """nvcc's words for an entry: "9.0a" -> ["arch=compute_90a,code=sm_90a"]."""
    number = _number(entry)
    kinds = ["sm", "compute"] if entry.endswith("+PTX") else ["sm"]
    return [f"arch=compute_{number},code={kind}_{number}" for kind in kinds]


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
        reason = next(line for line in left_out if "'cuda'" in line or line.startswith("pure"))
        sys.exit(f"SEQREC_FORCE_CUDA=1, but there would be no CUDA library: {reason}")
    BuildNative.remarks = tuple(left_out)
    setup(
        packages=[
            *find_packages(include=["seqrec", "seqrec.*", "seqrec_kernels", "seqrec_kernels.*"]),
            "seqrec.benchmarks",  # what `seqrec bench` runs, wherever it is installed
        ],
        package_dir={"seqrec.benchmarks": "benchmarks"},
        ext_modules=list(built.values()),
        cmdclass={"build_ext": BuildNative},
    )
