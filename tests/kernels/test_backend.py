"""Which implementation runs, who may say so, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from seqrec_kernels import backend, catalog_rank
from seqrec_kernels.backend import NAMES, choose, forced, register, report

Q, E, Y = torch.ones(1, 2), torch.ones(3, 2), torch.tensor([1])


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> str:
    """A made-up operator: a fast path that wants wide rows, and a reference."""
    # the package shows the context manager under the name of its module
    monkeypatch.setattr(sys.modules["seqrec_kernels.backend"], "_operators", {})
    register(
        "op",
        {
            "blocked": lambda q, e: None if q.shape[1] > 1 else "rows are too narrow",
            "reference": lambda q, e: None,
        },
    )
    return "op"


def test_the_first_that_can_run_runs(operator: str) -> None:
    assert choose(operator, Q, E) == "blocked"
    assert choose(operator, Q[:, :1], E) == "reference"


def test_the_innermost_context_wins_and_is_left_again(operator: str) -> None:
    assert forced() is None
    with backend("blocked"):
        with backend("reference") as inner:
            assert choose(operator, Q, E) == "reference"
            with inner:
                assert forced() == "reference"
            assert forced() == "reference"
        assert choose(operator, Q, E) == "blocked"
        with pytest.raises(KeyError), backend("reference"):
            raise KeyError
        assert forced() == "blocked"
    assert forced() is None


def test_a_choice_belongs_to_its_thread() -> None:
    found: list[str | None] = []
    with backend("reference"):
        other = threading.Thread(target=lambda: found.append(forced()))
        other.start()
        other.join()
    assert found == [None]


def test_a_forced_choice_is_never_replaced(operator: str) -> None:
    with backend("blocked"), pytest.raises(RuntimeError, match="rows are too narrow"):
        choose(operator, Q[:, :1], E)
    for name in ("triton", "native"):
        with backend(name), pytest.raises(RuntimeError) as caught:
            choose(operator, Q, E)
        text = str(caught.value)
        assert f"no {name!r} implementation of op" in text and "\n" not in text


def test_float64_runs_the_reference_whatever_is_asked_for() -> None:
    with backend("blocked"):
        assert choose("catalog_rank", Q.double(), E.double()) == "reference"
        assert int(catalog_rank(Q.double(), E.double(), Y).equal) == 2


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="backend name is 'cuda'; it must be one of native"):
        backend("cuda")


def test_the_choice_from_outside() -> None:
    code = (
        "import torch\n"
        "from seqrec_kernels.backend import backend, choose\n"
        "import seqrec_kernels\n"
        "q = torch.ones(1, 1)\n"
        "print(choose('catalog_rank', q, q))\n"
        "with backend('blocked'): print(choose('catalog_rank', q, q))\n"
    )

    def run(name: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SEQREC_KERNELS_BACKEND": name}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )

    assert run("reference").stdout.split() == ["reference", "blocked"]
    wrong = run("fast")
    assert wrong.returncode and "SEQREC_KERNELS_BACKEND is 'fast'" in wrong.stderr


def test_the_report_names_every_operator_and_room() -> None:
    table = report()
    assert {"catalog_cross_entropy", "catalog_rank", "catalog_topk"} <= set(table)
    for rooms in table.values():
        assert set(rooms) == set(NAMES)
        assert rooms["reference"] is None and rooms["blocked"] is None
    assert report(dtype=torch.float64)["catalog_rank"]["blocked"] == "float64 runs the reference"


def test_a_compiled_call_follows_the_context() -> None:
    compiled = torch.compile(catalog_rank, fullgraph=True, backend="aot_eager")
    assert int(compiled(Q, E, Y).equal) == 2
    with backend("reference"):
        assert int(compiled(Q, E, Y).equal) == 2
