"""What runs on this machine, and what to do so that more of it does."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

REINSTALL = "pip install 'setuptools>=77' pybind11 && pip install --no-build-isolation ."

# what a kernel may care about, as /proc/cpuinfo calls it
_CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}


def lines() -> Iterator[str]:
    """The report, line by line; a part that is broken is reported, not raised."""
    hints: list[str] = []
    torch = _import_torch(hints)
    yield from _section("versions", _versions(hints))
    yield from _section("devices", _devices(torch, hints))
    if torch is not None:
        yield from _section("kernels", _kernels(torch))
        yield from _section("graphs", _graphs())
    yield from _section("compiled", _compiled(torch, hints))
    yield from _section("to mend", iter(hints or ["nothing"]))


def _section(title: str, content: Iterator[str]) -> Iterator[str]:
    for line in content:
        yield f"{title:<9} {line}".rstrip()
        title = ""
    yield ""


def _import_torch(hints: list[str]) -> ModuleType | None:
    try:
        return importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything, also OSError
        what = " ".join(str(error).split())
        hints.append(f"torch cannot be imported ({what}): install the build for your machine")
        return None


def _versions(hints: list[str]) -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    root = Path(__file__).resolve().parent.parent
    yield f"python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for name in ("seqrec", "torch", "numpy", "polars", "safetensors", "triton"):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed" + (", run from a source tree" if name == "seqrec" else "")
            if name in ("numpy", "polars", "safetensors"):
                hints.append(f"{name} is missing: pip install {name}")
        yield f"{name} {found}" + (f" ({root})" if name == "seqrec" else "")


def _devices(torch: ModuleType | None, hints: list[str]) -> Iterator[str]:
    facts = _proc("/proc/cpuinfo", "model name", "flags", "Features")
    words = (facts.get("flags") or facts.get("Features") or "").split()
    features = [name for flag, name in _CPU_FEATURES.items() if flag in words]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = _proc("/proc/meminfo", "MemTotal", "MemAvailable")
    sizes = [f"{int(text.split()[0]) / 2**20:.1f}" for text in memory.values()]
    yield f"cpu: {facts.get('model name') or platform.processor() or platform.machine()}"
    yield f"     {', '.join(features) or 'no vector features known'}"
    if len(sizes) == 2:
        yield f"     {sizes[0]} GiB memory, {sizes[1]} free"
    if torch is None:
        yield f"     {cores} cores to use"
        return
    threads = torch.get_num_threads()
    yield f"     {cores} cores to use, torch takes {threads} threads"
    if cores and threads > cores:
        hints.append(f"more threads than cores slow every step: set OMP_NUM_THREADS={cores}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            size = gpu.total_memory / 2**30
            yield f"cuda:{index}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {size:.1f} GiB"
    elif torch.version.cuda is None:
        yield "cuda: none, this torch is built without it"
        if Path("/proc/driver/nvidia").exists():
            hints.append("there is an NVIDIA GPU: install a CUDA build of torch to use it")
    else:
        yield f"cuda: none, torch is built for CUDA {torch.version.cuda} and finds no GPU"


def _kernels(torch: ModuleType) -> Iterator[str]:
    """For each operator and device what runs, and why nothing faster does."""
    import seqrec_kernels
    from seqrec_kernels.backend import report

    del seqrec_kernels  # imported because that is what registers the operators
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        for operator, implementations in report(device).items():
            passed = []
            for name, reason in implementations.items():
                if reason is None:
                    yield f"{operator} on {device}: {name}"
                    break
                passed.append(f"{name}: {reason}")
            else:
                yield f"{operator} on {device}: nothing runs"
            for line in passed:
                yield f"    not {line}"


def _graphs() -> Iterator[str]:
    """For each method whether its training step runs as a CUDA graph, and why not."""
    from seqrec.config import load_config
    from seqrec.methods import METHODS, method_class

    reasons = {
        name: method_class(name).not_captured(load_config(name, flags={"data.path": "-"}))
        for name in METHODS
    }
    captured = [name for name, reason in reasons.items() if reason is None]
    yield f"steps captured on cuda: {', '.join(captured)}"
    for name, reason in reasons.items():
        if reason is not None:
            yield f"    not {name}: {reason}"


def _compiled(torch: ModuleType | None, hints: list[str]) -> Iterator[str]:
    try:
        host = importlib.import_module("seqrec_kernels._host")
    except Exception as error:  # built for another Python, or a library it needs is gone
        if isinstance(error, ModuleNotFoundError) and error.name == "seqrec_kernels._host":
            yield "nothing: this is a pure Python installation"
            hints.append(f"for the compiled parts, with a C++ compiler: {REINSTALL}")
        else:
            yield f"broken: {' '.join(str(error).split())}"
            hints.append(f"build the compiled parts again: {REINSTALL}")
        return
    info: dict[str, Any] = host.build_info()
    yield f"{info['parts']}: {info['compiler']}, {info['flags']}"
    yield f"    against torch {info['torch']}, python {info['python']}, pybind11 {info['pybind11']}"
    if built := info.get("cuda"):  # a module of an earlier version has none of these
        reason = None
        if torch is not None:
            reason = importlib.import_module("seqrec_kernels.native").CUDA_MISSING
        yield f"    CUDA for {built}" + (f"; not loaded: {reason}" if reason else "")
    if left_out := info.get("left_out"):
        yield f"    {left_out}"
    if torch is None:
        return
    if info["torch"] != torch.__version__:
        hints.append(f"built against torch {info['torch']}, {torch.__version__} runs: {REINSTALL}")
    missing = importlib.import_module("seqrec_kernels.native").MISSING
    if missing and "cpu" in info["parts"].split(","):
        hints.append(f"{missing.partition(';')[0]}: {REINSTALL}")


def _proc(path: str, *names: str) -> dict[str, str]:
    """The first value of each ``name : value`` line; nothing where the file is not there."""
    try:
        text = Path(path).read_text()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            found.setdefault(name.strip(), value.strip())
    return found
