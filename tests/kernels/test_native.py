"""The compiled CPU library: found, loaded, forced, and missed with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from seqrec_kernels import backend, catalog_rank, hard_negative_info_nce, native
from seqrec_kernels.backend import choose, report

OPERATORS = (
    "catalog_cross_entropy",
    "catalog_rank",
    "catalog_topk",
    "contrast",
    "ascend_noise",
    "sampled",
)
Q, E = torch.ones(1, 2), torch.ones(3, 2)


def test_without_the_library_the_torch_path_runs_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "MISSING", native.load(tmp_path / "_cpu.so"))
    for operator in OPERATORS:
        assert choose(operator, Q, E) == "blocked"
        reason = report()[operator]["native"]
        assert reason is not None and "not built" in reason and "\n" not in reason
        with backend("native"), pytest.raises(RuntimeError, match="cannot run on 'native': the C"):
            choose(operator, Q, E)
    compiled = torch.compile(catalog_rank, fullgraph=True, backend="aot_eager")
    assert int(compiled(Q, E, torch.tensor([1])).equal) == 2


def test_a_file_that_is_no_library_is_a_reason_too(tmp_path: Path) -> None:
    (tmp_path / "_cpu.so").write_bytes(b"nothing that loads")
    reason = native.load(tmp_path / "_cpu.so")
    assert reason is not None and "does not load" in reason and "\n" not in reason


def test_a_library_from_before_an_operator_was_added_is_a_reason_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (reason := native.MISSING) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(native, "OPERATORS", (*native.OPERATORS, "written_later"))
    monkeypatch.setattr(native, "MISSING", native.load(native.LIBRARY))
    for operator in OPERATORS:
        assert choose(operator, Q, E) == "blocked"
        reason = report()[operator]["native"]
        assert reason is not None and "\n" not in reason
        assert "older than the package, without written_later; pip install" in reason


def test_the_library_is_asked_for_all_its_operators() -> None:
    schemas = (Path(__file__).resolve().parents[2] / "csrc" / "library.cpp").read_text()
    assert set(native.OPERATORS) == set(re.findall(r'm\.def\(\s*"(\w+)\(', schemas))


def test_where_it_is_built_it_is_what_runs() -> None:
    if (reason := native.MISSING) is not None:
        pytest.skip(reason)
    for operator in OPERATORS:
        assert choose(operator, Q, E) == "native"
        assert choose(operator, Q.double(), E.double()) == "reference"
        assert report()[operator]["native"] is None


def test_versions_can_be_forced_and_unknown_ones_not() -> None:
    if (reason := native.MISSING) is not None:
        pytest.skip(reason)
    assert native.versions()[-1] == "portable"
    for name in native.versions():
        with native.version(name):
            assert int(catalog_rank(Q, E, torch.tensor([1])).equal) == 2
    with pytest.raises(ValueError, match=r"'mmx' does not run here; .*portable do"):
        with native.version("mmx"):
            pass


def test_no_version_falls_back_to_the_portable_kernels() -> None:
    """The contrastive kernels are found by the version's name: one that none of theirs begins would
    run the portable ones, correctly and slowly."""
    if (reason := native.MISSING) is not None:
        pytest.skip(reason)
    a, p, n = torch.randn(3, 64, 32).unbind()
    bits = {}
    for name in native.versions():
        with native.version(name), backend("native"):
            bits[name] = hard_negative_info_nce(a, p, n, focal_scale=8.0, reduction="none")
    # one that multiplies, rounds and adds against those that round once
    portable = bits.pop("portable")
    assert not any(torch.equal(portable, found) for found in bits.values())
    if "avx512_bf16" in bits:
        assert torch.equal(bits["avx512_bf16"], bits["avx512"])
