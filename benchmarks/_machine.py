"""What a figure was made on: commit, hardware, versions, and the rates this machine reaches now."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "numpy", "faiss-cpu", "cut-cross-entropy", "liger-kernel")


class Machine(NamedTuple):
    """Rates measured in this run; a bound is what they leave no way around.

    Attributes:
        device: "cpu" (one thread) or "cuda".
        copy: bytes a second of a large copy, read and written ones counted.
        matrix: dtype -> floating-point operations a second of a large product by torch.
    """

    device: str
    copy: float
    matrix: dict[torch.dtype, float]

    def bound(self, operations: float, size: float, dtype: torch.dtype) -> tuple[float, str]:
        """Least milliseconds for so many operations and bytes, and which of the two it is."""
        products, moves = 1e3 * operations / self.matrix[dtype], 1e3 * size / self.copy
        return (products, "products") if products >= moves else (moves, "copies")

    def figures(self) -> dict[str, Any]:
        """For the result file."""
        rates = {str(t).removeprefix("torch."): round(r / 1e9, 1) for t, r in self.matrix.items()}
        return {"copy_gb_s": round(self.copy / 1e9, 1), "matrix_gflop_s": rates}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside; on a GPU it makes no difference."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measured(device: str, dtypes: list[torch.dtype], small: bool) -> Machine:
    """The machine's rates just now, the best of a few calls each.

    float32 on a GPU is the better of torch's float32 product and a third of its TF32 product: three
    of these make one of float32's accuracy, and that is how the triton kernels form theirs.

    Args:
        small: little products and copies, to show that this runs; the rates mean nothing then.
    """
    cuda = device == "cuda"
    side = 128 if small else 8192 if cuda else 1024
    size = 1 << (16 if small else 30 if cuda else 27)
    with one_thread():
        copy = _copy_rate(device, size)
        rates = {dtype: _matrix_rate(device, dtype, side) for dtype in dtypes}
        if cuda and torch.float32 in rates:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            try:
                third = _matrix_rate(device, torch.float32, side) / 3
            finally:
                torch.set_float32_matmul_precision(before)
            rates[torch.float32] = max(rates[torch.float32], third)
    if cuda:
        torch.cuda.empty_cache()
    return Machine(device, copy, rates)


def _copy_rate(device: str, size: int) -> float:
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least_seconds(lambda: target.copy_(source), device)


def _matrix_rate(device: str, dtype: torch.dtype, side: int) -> float:
    # random and not ones: what is multiplied moves a GPU's clocks
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _least_seconds(lambda: torch.mm(a, b, out=out), device)


def _least_seconds(call: Callable[[], object], device: str) -> float:
    least = float("inf")
    call()
    for _ in range(8 if device == "cuda" else 4):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        else:
            begin = time.thread_time()
            call()
            seconds = time.thread_time() - begin
        least = min(least, seconds)
    return max(least, 1e-9)


def peak_mib(call: Callable[[], object], device: str) -> float | None:
    """MiB that one call takes at its highest, beyond what was there before; None where unknown.

    On a GPU what torch's allocator handed out; on the CPU growth of the resident set, from Linux.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)
    try:
        before = _settled()
        _, peak = peak_resident(call)
        return round((peak - before) / 2**20, 2)
    except (OSError, AttributeError, LookupError):
        return None


def peak_resident(call: Callable[[], Result]) -> tuple[Result, int]:
    """What the call returns, and bytes of this process' resident set at its highest meanwhile.

    Raises:
        OSError, AttributeError, LookupError: this is no Linux.
    """
    _settled()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    result = call()
    return result, _status_bytes("VmHWM")


def _settled() -> int:
    """Bytes resident now; freed pages, which would hide what a call takes, are handed back."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def surroundings(device: str = "cpu") -> dict[str, Any]:
    """Commit, hardware and versions. Where git is not, ``SEQREC_COMMIT`` names the commit."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    # a clean tree of what is measured means the commit is what ran
    parts = ("seqrec", "seqrec_kernels", "csrc", "benchmarks/*.py")
    changed = _git("status", "--porcelain", "--", *parts)
    found: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("SEQREC_COMMIT") or None,
        "changed_since": None if changed is None else changed.splitlines(),
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "versions": versions,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = gpu.name
        found["capability"] = f"{gpu.major}.{gpu.minor}"
        found["multiprocessors"] = gpu.multi_processor_count
        found["gpu_memory_gib"] = round(gpu.total_memory / 2**30, 1)
        versions["cuda"] = str(torch.version.cuda)
        versions["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return found


def _git(*arguments: str) -> str | None:
    """What git prints; None without git, or where this is no checkout."""
    return _output("git", *arguments)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None
