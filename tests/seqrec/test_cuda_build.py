"""The CUDA library as nvcc builds it here: for which chips, in how many registers, and if it loads.

No GPU is needed for any of it. What the kernels compute is for
``tests/kernels/test_selection.py`` and ``test_cuda_*.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from setup_script import ROOT, load_setup

from seqrec_kernels import native

# The programs, and the registers that none of their kernels may need more of: with 256 threads a
# block, 64 leave room for four blocks on a multiprocessor and 128 for two.
REGISTERS = {
    "ScoreProblem": 64, "KeyProblem": 64, "CountDigits": 64, "ScanDigits": 64, "MoveDigits": 64,
    "AddHeads": 64, "AddRuns": 128, "sampled4Rows": 128, "KeyParts": 64, "SumColumns": 64,
    "BestColumn": 64, "ColumnParts": 64, "ColumnNumbers": 64, "RerankRows": 128,
}  # fmt: skip
OPERATORS = [
    *("select_scores", "select_keys", "sampled_rows", "sort_slots", "add_sorted"),
    *("best_column", "column_keys", "column_numbers", "best_keys", "rerank_rows"),
]
SHARED = 48 << 10  # bytes, which need no asking for


SETUP = load_setup()


class Built(NamedTuple):
    library: Path
    log: str


def build(folder: Path, extension: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the build command on one extension, into ``folder``; the command, when it is through."""
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)  # sources are named from there
    command = SETUP.BuildNative(Distribution({"ext_modules": [extension]}))
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return command


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The library, from its sources."""
    try:
        extension = SETUP.cuda(os.environ)
    except SETUP.LeftOut as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("cuda build")  # a space: nothing is split
    extension.optional = False
    with pytest.MonkeyPatch.context() as patch:
        command = build(folder, extension, patch)
    assert command.left_out == []
    log = (folder / "temp" / "cuda" / "nvcc.log").read_text()
    return Built(folder / "lib" / "seqrec_kernels" / "_cuda.so", log)


@pytest.mark.slow
def test_kernels_keep_to_registers_on_every_chip(built: Built) -> None:
    """From what ptxas says (``-Xptxas -v``): no spills, no stack, no local memory."""
    found = {}
    for part in built.log.split("Compiling entry function ")[1:]:
        name, chip = re.match(r"'(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        kernel = program_of(name)
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in part, part
        assert "lmem" not in part, part
        used = re.search(r"Used (\d+) registers(?:.* (\d+) bytes smem)?", part)
        assert used is not None, part
        assert 8 <= int(used[1]) <= REGISTERS[kernel] and int(used[2] or 0) <= SHARED, part
        found[kernel, chip] = part
    if "SEQREC_CUDA_ARCHITECTURES" in os.environ:
        assert {kernel for kernel, _ in found} == REGISTERS.keys()
    else:
        chips = ("sm_80", "sm_90a", "sm_100")
        assert found.keys() == {(kernel, chip) for kernel in REGISTERS for chip in chips}
    assert "warning" not in built.log


@pytest.mark.slow
def test_one_file_holds_code_for_each_chip_and_for_what_follows(built: Built) -> None:
    listed = cuobjdump("-lelf", "-lptx", built.library)
    for entry in SETUP.cuda(os.environ).description.split()[0].split(";"):
        number = entry.removesuffix("+PTX").replace(".", "")
        assert re.search(rf"\.sm_{number}\.cubin", listed), listed
        assert entry.endswith("+PTX") == bool(re.search(rf"\.sm_{number}\.ptx", listed)), listed
    usage = cuobjdump("-res-usage", built.library)
    held = re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+).*LOCAL:(\d+)", usage)
    assert {program_of(name) for name, *_ in held} == REGISTERS.keys()
    assert all(stack == local == "0" for _, stack, local in held), held


def program_of(kernel: str) -> str:
    """The program that a kernel runs, from the kernel's mangled name."""
    (program,) = (program for program in REGISTERS if program in kernel)
    return program


def cuobjdump(*arguments: str | Path) -> str:
    tool = shutil.which("cuobjdump")
    if tool is None and (spec := importlib.util.find_spec("triton")) and spec.origin:
        brought = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        tool = str(brought) if brought.exists() else None
    if tool is None:
        pytest.skip("no cuobjdump on the PATH, and none with triton")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


LOADS = """
import sys, torch
from seqrec_kernels import native
library = __import__("pathlib").Path(sys.argv[1])
assert native.MISSING is None, native.MISSING
print(native.load_cuda(library))
torch.version.cuda = "99.0"
print(native.load_cuda(library))
torch.version.cuda = sys.argv[2]
print(native.load_cuda(library))
print(native.cuda_build())
for name in sys.argv[3:]:
    print(torch._C._dispatch_has_kernel_for_dispatch_key("seqrec_native::" + name, "CUDA"))
"""


@pytest.mark.slow
def test_the_library_asks_for_nothing_that_torch_does_not_have(built: Built) -> None:
    """It is loaded with every symbol bound at once, torch's CUDA ones from a stand-in."""
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA: test_install.py loads the library for real")
    if native.MISSING is not None:
        pytest.skip(native.MISSING)
    wanted = symbols("--undefined-only", built.library)
    libraries = Path(torch.__file__).parent / "lib"
    there = symbols("--defined-only", libraries / "libtorch_cpu.so")
    missing = {name for name in wanted if re.match(r"(aoti_)?torch_", name)} - there
    assert missing == {
        "aoti_torch_get_current_cuda_stream",
        "torch_c10_cuda_check_msg",
        "torch_c10_cuda_free_error_msg",
    }
    # they are what torch's own headers promise of a CUDA build
    headers = "".join(
        (libraries.parent / "include" / "torch" / "csrc" / name).read_text()
        for name in ("stable/c/shim.h", "inductor/aoti_torch/c/shim.h")
    )
    with_cuda = "".join(re.findall(r"#ifdef USE_CUDA(.*?)#endif // USE_CUDA", headers, re.DOTALL))
    assert all(re.search(rf"\b{name}\b", with_cuda) for name in missing)

    folder = built.library.parent / "stand-in"
    folder.mkdir()
    source = folder / "torch_cuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted(missing)))
    name = "libtorch_cuda.so"
    compiler = [*SETUP._compiler(os.environ), "-x", "c", "-shared", "-fPIC"]
    link = [f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
    subprocess.run([*compiler, *link], check=True)
    extension = SETUP.cuda(os.environ)
    version = re.search(r"nvcc (\d+\.\d+)", extension.description)
    assert version is not None
    # torch's CUDA build has loaded the runtime; here it is the toolkit's
    dry = [extension.nvcc, "--dryrun", "-shared", "x.cu"]
    said = subprocess.run(dry, capture_output=True, text=True, check=True).stderr
    paths = [str(folder), *re.findall(r'"-L(\S+/lib\w*)"', said)]
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(built.library), version[1], *OPERATORS],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(paths), "LD_BIND_NOW": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    description = extension.description
    assert done.stdout.splitlines() == [
        "this torch is built without CUDA",
        f"built for {description}, and torch has CUDA 99.0",
        *("None", description, *["True"] * len(OPERATORS)),
    ]


def symbols(which: str, library: Path) -> set[str]:
    done = subprocess.run(
        ["nm", "--dynamic", which, library], capture_output=True, text=True, check=True
    )
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


# ---- whether and for what it is built, told by tools that are not there --------------------------

NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --list-gpu-code) printf '{known}' ;;
  *) echo "some note"; echo "catalog_topk.cu(7): error: no such thing"; exit 1 ;;
esac
"""
# a compiler that is quick: it writes the file it is asked for
COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -o ] && : >"$2"; shift; done
"""


@pytest.fixture
def tools(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """``tools(...)``: an environment whose CUDA_HOME has an nvcc that compiles nothing."""

    def make(release: str = "13.0", known: str = "sm_80\\nsm_90\\nsm_100\\n") -> dict[str, str]:
        home = tmp_path / "home"
        (home / "bin").mkdir(parents=True, exist_ok=True)
        nvcc = NVCC.format(release=release, known=known)
        for path, text in ((home / "bin" / "nvcc", nvcc), (tmp_path / "c++", COMPILER)):
            path.write_text(text)
            path.chmod(0o755)
        compiler = str(tmp_path / "c++")
        return {"CUDA_HOME": str(home), "CC": compiler, "CXX": compiler, "LDCXXSHARED": compiler}

    return make


def reason(environ: dict[str, str]) -> str:
    """The line that says why there is no CUDA library."""
    extensions, lines = SETUP.plan({"CXX": sys.executable, **environ})
    assert "cuda" not in extensions
    (line,) = (line for line in lines if "'cuda'" in line)
    assert "\n" not in line
    return str(line).removeprefix("without its part 'cuda': ")


def test_without_nvcc_it_is_left_out(tmp_path: Path) -> None:
    assert reason({"PATH": str(tmp_path)}) == "no nvcc on the PATH, and no CUDA_HOME"
    assert reason({"CUDA_HOME": str(tmp_path)}) == f"no nvcc in {tmp_path / 'bin'}"


def test_an_nvcc_that_answers_nothing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    said = reason({"PATH": str(tmp_path)})
    assert said == f"{tmp_path / 'nvcc'} --version fails with status 1"


def test_it_is_built_for_what_the_compiler_knows(tools: Callable[..., dict[str, str]]) -> None:
    def chips(**said: str) -> str:
        return str(SETUP.cuda(tools(**said)).description)

    assert chips() == "8.0;9.0a;10.0+PTX by nvcc 13.0"
    assert chips(known="sm_80\\nsm_90\\n") == "8.0;9.0a;9.0+PTX by nvcc 13.0"
    assert chips(known="sm_75\\nsm_80\\n") == "8.0+PTX by nvcc 13.0"
    assert reason(tools(known="sm_70\\n")).endswith("none of sm_80, sm_90 and sm_100")


def test_every_source_is_built(tools: Callable[..., dict[str, str]]) -> None:
    kept = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").iterdir()}
    sources = SETUP.cuda(tools()).sources
    assert set(sources) == {path for path in kept if not path.endswith(".h")}


def test_architectures_can_be_said(tools: Callable[..., dict[str, str]]) -> None:
    for text in ("9.0a;12.0+PTX", "9.0a 12.0+PTX", "9.0a,12.0+PTX"):
        extension = SETUP.cuda({**tools(), "SEQREC_CUDA_ARCHITECTURES": text})
        assert [flag for flag in extension.extra_compile_args if "gencode" in flag] == [
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_120,code=sm_120",
            "-gencode=arch=compute_120,code=compute_120",
        ]
        assert extension.description.startswith("9.0a;12.0+PTX ")
    for text in ("sm_90", "9", "8.0;hopper", "9.0a+PTX;x"):
        said = reason({**tools(), "SEQREC_CUDA_ARCHITECTURES": text})
        assert said.startswith("SEQREC_CUDA_ARCHITECTURES has ") and "write it like" in said


def test_two_cudas_in_one_process_are_refused(
    tools: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of another CUDA than torch's may need a newer driver than torch does."""
    (tmp_path / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    monkeypatch.setattr(SETUP, "_torch", lambda: tmp_path)
    assert reason(tools()) == "nvcc is of CUDA 13, and torch of CUDA 12"
    assert SETUP.cuda(tools(release="12.4")).description.endswith("by nvcc 12.4")


def test_it_is_built_anew_for_other_chips(
    tools: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = tools()
    nvcc = tmp_path / "home" / "bin" / "nvcc"
    # it writes the chips into the file it is asked for
    nvcc.write_text(nvcc.read_text().replace("*)", '-shared*) echo "$*" >"$3"; exit ;; *)'))
    library = tmp_path / "lib" / "seqrec_kernels" / "_cuda.so"
    for chips, anew in (("8.0", True), ("8.0", False), ("9.0a", True)):
        if library.exists():
            library.write_text(library.read_text() + "old")
        build(tmp_path, SETUP.cuda({**environ, "SEQREC_CUDA_ARCHITECTURES": chips}), monkeypatch)
        assert ("old" not in library.read_text()) == anew
        assert f"arch=compute_{chips.replace('.', '')}," in library.read_text()


def test_a_compiler_that_fails_leaves_it_out(
    tools: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = tools()
    command = build(tmp_path, SETUP.cuda(environ), monkeypatch)
    assert command.left_out == [
        "without its part 'cuda': nvcc fails with status 1: "
        "catalog_topk.cu(7): error: no such thing"
    ]
    with pytest.raises(SETUP.CompileError, match="no such thing"):
        build(tmp_path, SETUP.cuda({**environ, "SEQREC_FORCE_CUDA": "1"}), monkeypatch)


@pytest.mark.parametrize("forced", ["0", "1"])
def test_an_install_goes_on_without_it_unless_it_is_forced(
    tools: Callable[..., dict[str, str]], tmp_path: Path, forced: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "csrc", source / "csrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for package in ("seqrec", "seqrec_kernels"):
        (source / package).mkdir()
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=source,
        env={**os.environ, **tools(), "SEQREC_FORCE_CUDA": forced},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    lines = [line for line in said.splitlines() if "error: no such thing" in line]
    assert lines and "nvcc fails with status 1" in lines[-1], said
    (made,) = (source / "build").glob("lib*/seqrec_kernels")
    assert not (made / "_cuda.so").exists()
    if forced == "1":
        assert done.returncode != 0 and lines[-1].startswith("error: nvcc fails")
    else:
        assert done.returncode == 0 and (made / "_cpu.so").exists()
        # the host module is told
        assert '-DSEQREC_PARTS="host,cpu"' in said.replace("\\", "")
        assert "without its part 'cuda': nvcc fails" in said.partition("SEQREC_LEFT_OUT")[2]


# ---- which chips it serves -----------------------------------------------------------------------


def test_which_chips_code_serves() -> None:
    def serves(architectures: str) -> set[tuple[int, int]]:
        chips = [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
        ranges = native.served(architectures)
        return {chip for chip in chips if any(a <= chip <= b for a, b in ranges)}

    assert serves("8.0;9.0a;10.0+PTX") == {(8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)}
    assert serves("8.6") == {(8, 9)}
    assert serves("9.0a") == serves("9.0a+PTX") == {(9, 0)}
    assert serves("10.0f") == {(10, 0), (10, 3)}
    assert serves("8.0+PTX") == {(8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)}


def test_why_it_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    assert native.load_cuda(tmp_path / "_cuda.so") == "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native, "MISSING", "no schemas")
    assert native.load_cuda(tmp_path / "_cuda.so") == "no schemas"
    monkeypatch.setattr(native, "MISSING", None)
    said = native.load_cuda(tmp_path / "_cuda.so")
    assert said is not None and said.startswith("the CUDA library is not built; pip install")
    (tmp_path / "_cuda.so").write_bytes(b"nothing that loads")
    said = native.load_cuda(tmp_path / "_cuda.so")
    assert said is not None and said.startswith("the CUDA library does not load: ")
    assert "\n" not in said
