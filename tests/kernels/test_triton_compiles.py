"""The triton kernels compiled for chips that are not here: what fits, what spills, what multiplies.

Every launch that an operator makes is caught with its arguments and compiled by triton's own ptxas,
for which no driver is needed. That a kernel is right is another file's matter; here the compiler's
own figures are held to what the tile table promises.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from seqrec_kernels import SeenItems, triton_loader
from seqrec_kernels.ops.catalog_cross_entropy.labels import Problem
from seqrec_kernels.ops.contrast.problem import Problem as Pairs

triton = pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(triton_loader.INTERPRETED, reason="kernels are interpreted here")

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
# the instruction a product of each chip's tensor cores is made of
PRODUCT = {80: "mma.sync", 86: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# bytes of shared memory of a block, from NVIDIA's tables of compute capabilities
LIMIT = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Launch(NamedTuple):
    """A kernel, and what an operator launches it with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    def constants(self) -> dict[str, Any]:
        """What is compiled in."""
        return {x.name: self.arguments[x.name] for x in self.kernel.params if x.is_constexpr}

    def compiled(self, chip: int) -> Any:
        """The kernel, compiled for ``chip`` with pointers aligned as torch allocates them."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=self.options)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """``launches(chip, call)``: what ``call`` launches on that chip, without running any of it."""
    from triton.runtime.jit import JITFunction

    from seqrec_kernels import tiles

    caught: list[Launch] = []

    def catch(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS}  # each launch says all of them
        caught.append(Launch(self, dict(zip(self.arg_names, given, strict=False)) | named, options))

    def run(chip: int, call: Callable[[], Any]) -> list[Launch]:
        caught.clear()
        monkeypatch.setattr(tiles, "capability", lambda tensor: chip)
        call()
        different = {x.kernel.fn.__name__ + repr(x.constants()): x for x in caught}
        return list(different.values())

    monkeypatch.setattr(JITFunction, "run", catch)
    return run


# ---- what the operators launch -------------------------------------------------------------------


def cross_entropy(dtype: torch.dtype, depth: int) -> None:
    from seqrec_kernels.ops.catalog_cross_entropy import triton_kernels

    q, e = torch.zeros(2, depth, dtype=dtype), torch.zeros(9, depth, dtype=dtype)
    targets = torch.ones(2, 3, dtype=torch.int64)
    problem = Problem(q, e, targets, None, torch.zeros(9), 1, 0.5, "mean")
    _, saved = triton_kernels.forward(problem, [True] * 3)
    triton_kernels.backward(torch.ones(()), problem, saved, [True] * 3)


def cross_entropy_in_parts(dtype: torch.dtype, depth: int) -> None:
    from seqrec_kernels import tiles

    kept = tiles.PROGRAMS, tiles.LEAST
    tiles.PROGRAMS, tiles.LEAST = 10**6, 1
    try:
        from seqrec_kernels.ops.catalog_cross_entropy import triton_kernels

        q, e = torch.zeros(300, depth, dtype=dtype), torch.zeros(300, depth, dtype=dtype)
        problem = Problem(q, e, torch.ones(300, 1, dtype=torch.int64), None, None, 0, 0.5, "mean")
        _, saved = triton_kernels.forward(problem, [True, True, False])
        triton_kernels.backward(torch.ones(()), problem, saved, [True, True, False])
    finally:
        tiles.PROGRAMS, tiles.LEAST = kept


def rank(dtype: torch.dtype, depth: int, seen_score: float | None = None) -> None:
    from seqrec_kernels.ops.catalog_rank import triton_kernels

    q, e = torch.zeros(2, depth, dtype=dtype), torch.zeros(9, depth, dtype=dtype)
    seen = SeenItems.from_lists([[1], [2]])
    targets = torch.ones(2, dtype=torch.int64)
    triton_kernels.forward(q, e, targets, torch.zeros(9), 1, seen, seen_score)


def topk(dtype: torch.dtype, depth: int) -> None:
    from seqrec_kernels.ops.catalog_topk import triton_kernels

    q, e = torch.zeros(2, depth, dtype=dtype), torch.zeros(99, depth, dtype=dtype)
    seen = SeenItems.from_lists([[1], [2]])
    triton_kernels.forward(q, e, 2, torch.zeros(99), 1, seen)


def contrast(dtype: torch.dtype, depth: int, **changed: Any) -> None:
    """By default what needs the most registers: drawn ratios, and mixed negatives pull theirs."""
    from seqrec_kernels.ops.contrast import triton_kernels

    matrices = [torch.zeros(rows, depth, dtype=dtype) for rows in (300, 300, 300, 300)]
    ids, seed = torch.zeros(300, dtype=torch.int64), torch.tensor(3)
    problem = Pairs(*matrices, ids, ids, seed, 0.5, 8.0, 0.2, 0.1, 0.9, 0.1, "paper", "mean")
    problem = problem._replace(**changed)
    _, saved = triton_kernels.forward(problem, [True] * 4)
    triton_kernels.backward(torch.ones(()), problem, saved, [True] * 4)


def random_bits() -> None:
    from seqrec_kernels.ops.random_bits import triton_kernels

    triton_kernels.forward(torch.tensor(3), 25, 99)


def attention(dtype: torch.dtype, depth: int, last: bool = False) -> None:
    """Of two heads, each `depth` wide, packed as a projection gives them, with dropout."""
    if depth > (64 if dtype == torch.float32 else 128):
        return  # wider heads run elsewhere
    from seqrec_kernels.ops.jagged_attention import triton_kernels
    from seqrec_kernels.ops.jagged_attention.problem import Problem

    rows, offsets = torch.zeros(9, 6 * depth, dtype=dtype), torch.tensor([0, 4, 9])
    q, kv = torch.zeros(2, 2 * depth, dtype=dtype), torch.zeros(9, 4 * depth, dtype=dtype)
    held = (q, kv, None) if last else (rows, None, None)
    problem = Problem(*held, offsets, torch.tensor(3), 2, not last, last, 1000, None)
    out, saved = triton_kernels.forward(problem, [True] * 3)
    triton_kernels.backward(out, problem, [out, *saved], [True] * 3)


CONTRASTS: list[dict[str, Any]] = [
    {"form": "official"},
    {"mix_high": 0.1},
    {"mix_high": 0.1, "form": "official"},
    {"mix_weight": 0.0},
    {"mix_weight": 0.0, "focal_scale": None, "margin": 0.0, "anchor_ids": None},
]

TILES = {
    "lse_fwd_kernel", "dq_bwd_kernel", "de_bwd_kernel", "level_kernel", "count_kernel",
    "topk_kernel", "pair_fwd_kernel", "da_bwd_kernel", "dn_bwd_kernel",
    "attention_fwd_kernel", "attention_dq_bwd_kernel", "attention_dkv_bwd_kernel",
}  # fmt: skip


def holds(launch: Launch, chip: int) -> list[str]:
    """What is wrong with a kernel compiled for a chip: nothing, hopefully."""
    compiled = launch.compiled(chip)
    name, depth = launch.kernel.fn.__name__, launch.constants().get("D")
    here = f"{name}, D={depth}, sm_{chip}"
    wrong = []
    if compiled.metadata.shared > LIMIT[chip]:
        wrong.append(f"{here}: {compiled.metadata.shared} bytes of shared memory")
    usage = resources(compiled.asm["cubin"])
    if usage["STACK"] or usage["LOCAL"]:  # a frame need not hold spilled registers
        spilled = spills(compiled.asm["ptx"], chip, launch.options["enable_fp_fusion"])
        if spilled:
            wrong.append(f"{here}: {spilled} bytes spilled, {usage}")
    products = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
    found = [product for product in products if product in compiled.asm["ptx"]]
    if name in TILES and not found:
        wrong.append(f"{here}: no tensor-core instruction")
    # items of a float32 gradient are 32 rows of a product: too few for a warp group's instruction
    # and so are an attention's queries of float32, or one a sequence
    constants = launch.constants()
    narrow = constants["BV"] < 64 if name == "de_bwd_kernel" else constants.get("BM", 64) < 64
    if name in TILES and not narrow and PRODUCT[chip] not in found:
        wrong.append(f"{here}: {found} and not {PRODUCT[chip]}")
    return wrong


def spills(ptx: str, chip: int, fusion: bool) -> int:
    """Bytes of registers that ptxas writes to memory and reads back."""
    from triton.backends.nvidia.compiler import get_ptxas

    arch = f"sm_{chip}a" if chip >= 90 else f"sm_{chip}"
    flags = [] if fusion else ["--fmad=false"]
    done = subprocess.run(
        [get_ptxas(chip).path, "-v", *flags, f"--gpu-name={arch}", "-", "-o", os.devnull],
        input=ptx, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a kernel, as ptxas has left them in it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton brings no cuobjdump")
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", done.stdout)}


FULL = os.environ.get("SEQREC_FULL_COMPILE", "") not in ("", "0")  # takes half an hour
GRID = [
    (chip, dtype, depth)
    for chip in (80, 90, 100)
    for dtype, depth in ((torch.bfloat16, 64), (torch.float32, 64))
] + [(86, torch.float32, 128), (80, torch.float16, 50), (90, torch.bfloat16, 256)]
if FULL:
    WIDTHS = (16, 32, 50, 64, 100, 128, 256, 512)
    GRID = [(chip, dtype, depth) for chip in LIMIT for dtype in DTYPES for depth in WIDTHS]


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "dtype", "depth"), GRID, ids=str)
def test_kernels_fit_keep_to_registers_and_use_tensor_cores(
    launches: Callable[..., list[Launch]], chip: int, dtype: torch.dtype, depth: int
) -> None:
    calls: list[Callable[..., None]] = [cross_entropy, rank, topk, contrast, attention]
    if FULL:
        calls += [cross_entropy_in_parts, partial(rank, seen_score=0.0)]
        calls += [partial(attention, last=True)]
        calls += [partial(contrast, **changed) for changed in CONTRASTS]
    wrong = []
    for call in calls:
        for launch in launches(chip, partial(call, dtype, depth)):
            if FULL or launch.kernel.fn.__name__ in TILES:
                wrong += holds(launch, chip)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("chip", [80, 90, 100])
def test_the_kernel_that_draws_keeps_to_registers(
    launches: Callable[..., list[Launch]], chip: int
) -> None:
    (launch,) = launches(chip, random_bits)
    assert not holds(launch, chip)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_aligned_tables_are_read_ahead(
    launches: Callable[..., list[Launch]], dtype: torch.dtype
) -> None:
    (forward,) = (
        x
        for x in launches(80, partial(cross_entropy, dtype, 64))
        if x.kernel.fn.__name__ == "lse_fwd_kernel"
    )
    assert re.search(r"cp\.async\.c[ag]\.shared\.global \[.*\], \[.*\], 0x10",
                     forward.compiled(80).asm["ptx"])  # fmt: skip


def test_no_launch_leaves_the_fusing_of_products_and_sums_to_a_default(
    launches: Callable[..., list[Launch]],
) -> None:
    calls = (cross_entropy, cross_entropy_in_parts, rank, topk, contrast, attention)
    found = [x for call in calls for x in launches(90, partial(call, torch.float32, 64))]
    # `launches` takes the option out of every launch and fails where one does not say it
    assert {x.kernel.fn.__name__ for x in found} >= TILES
    ranking = {"level_kernel", "count_kernel", "topk_kernel", "seen_kernel"}
    assert all(
        x.options["enable_fp_fusion"] == (x.kernel.fn.__name__ not in ranking) for x in found
    )


def test_ranking_never_takes_a_single_tf32_product(launches: Callable[..., list[Launch]]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = [x for call in (rank, topk) for x in launches(90, partial(call, torch.float32, 64))]
    finally:
        torch.set_float32_matmul_precision(before)
    taken = {x.constants()["PRECISION"] for x in found if "PRECISION" in x.constants()}
    assert taken == {"tf32x3"}


def test_one_kernel_serves_every_length(launches: Callable[..., list[Launch]]) -> None:
    found = [
        x
        for call in (cross_entropy, cross_entropy_in_parts, rank, topk, contrast, attention)
        for x in launches(90, partial(call, torch.bfloat16, 64))
    ]
    for launch in found:
        for parameter in launch.kernel.params:
            if parameter.is_constexpr or not isinstance(launch.arguments[parameter.name], int):
                continue
            assert parameter.do_not_specialize, (launch.kernel.fn.__name__, parameter.name)
