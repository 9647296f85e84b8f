"""The step in fixed shapes could be replayed by a CUDA graph; and what replays it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from far_device import FAR, FarDevice, Region
from fixed_steps import STEPS, configured, trainer
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqrec import doctor
from seqrec.config import Config, load_config
from seqrec.counters import DROPOUT, derive
from seqrec.data.store import epoch_order
from seqrec.methods import METHODS, method_class
from seqrec.methods.sasrec import SASRecMethod
from seqrec.training import captured
from seqrec.training.progress import Progress
from seqrec_kernels import triton_loader
from seqrec_kernels.backend import _operators

# What a graph could capture -----------------------------------------------------------------------


# What is met, R2NS's corrected form forbids, and the torch form of this operator counts that on the
# host, as it says; on CUDA it is one compiled kernel.
CLOSED = {"r2ns-main": ["seqrec_kernels::rerank_negatives"]}


def watched(
    config: Config, epochs: tuple[int, int], directory: Path, closed: Collection[str] = ()
) -> list[Region]:
    """Two steps after the first, each in an epoch of its own."""
    with FarDevice(closed) as far:
        made = trainer(config, directory, FAR)
        fixed = made.fixed
        assert fixed is not None
        regions = []
        for number, epoch in enumerate((epochs[0], *epochs)):
            fixed.begin(epoch, number, 7 * number, epoch_order(3, epoch, made.rows))
            with far.region() as region:
                fixed.step(made.config.training.batch)
            regions.append(region)
    return regions[1:]


@pytest.mark.parametrize("name", STEPS)
def test_a_graph_could_replay_the_step(name: str, tmp_path: Path) -> None:
    """Nothing waits, nothing comes from the host, and two steps are the same calls throughout."""
    epoch = STEPS[name][1]
    closed = CLOSED.get(name, ())
    first, second = watched(configured(name), (epoch, epoch + 1), tmp_path, closed)
    assert first.violations == second.violations == []
    assert first.operators == second.operators
    kinds = {written.partition("(")[0] for written in first.operators}
    assert {"aten._fused_adamw_.default", "aten.searchsorted.Tensor"} <= kinds
    losses = ("seqrec_kernels.catalog_cross_entropy_backward", "seqrec_kernels.sampled_backward")
    assert any(kind.startswith(losses) for kind in kinds)


@pytest.mark.skipif(triton_loader.INTERPRETED, reason="kernels are interpreted here")
@pytest.mark.parametrize("name", ["sasrec", "sasrec-prefixes", "icsrec", "fenrec-main", "cl4srec"])
def test_a_graph_could_replay_the_launches_of_triton(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's part of the triton kernels, as on an sm_90; what they compute is not looked at."""
    pytest.importorskip("triton", reason="triton is not installed")
    from triton.runtime.jit import JITFunction

    from seqrec_kernels import tiles

    def caught(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        mode = _get_current_dispatch_mode()
        assert isinstance(mode, FarDevice)
        launched.add(self.fn.__name__)
        mode.launch(self.fn.__name__, grid, *given, named)

    launched: set[str] = set()
    monkeypatch.setattr(JITFunction, "run", caught)
    monkeypatch.setattr(tiles, "capability", lambda tensor: 90)
    for known in _operators.values():
        if "triton" in known:
            monkeypatch.setitem(known, "triton", lambda queries, items: None)  # type: ignore[arg-type]
    epoch = STEPS[name][1]
    first, second = watched(configured(name), (epoch, epoch + 1), tmp_path)
    assert first.violations == second.violations == []
    assert first.operators == second.operators
    assert {"lse_fwd_kernel", "de_bwd_kernel", "bits_kernel"} <= launched
    assert ("pair_fwd_kernel" in launched) == (not name.startswith("sasrec"))


def test_every_method_that_says_so_is_watched() -> None:
    shown = {method for method, _, _ in STEPS.values()}
    for name in METHODS:
        config = load_config(name, flags={"data.path": "-"})
        assert (name in shown) == (method_class(name).not_captured(config) is None), name


@pytest.mark.parametrize("planted", ["reads", "freezes an epoch", "freezes a seed", "by data"])
def test_a_step_that_cannot_be_replayed_is_caught(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SASRecMethod.loss

    def spoiled(self: SASRecMethod, batch: Any, step: Any) -> Tensor:
        found = loss(self, batch, step)
        if planted == "reads":
            return found if found > 0 else -found
        if planted == "freezes an epoch":
            return found * (1.0 + step.epoch)
        if planted == "freezes a seed":
            return found * (derive(3, DROPOUT, step.epoch) % 5 + 1)
        return found + batch[1][batch[1] >= 0].sum()

    monkeypatch.setattr(SASRecMethod, "loss", spoiled)
    first, second = watched(configured("sasrec"), (0, 1), tmp_path)
    if planted.startswith("freezes"):
        assert first.operators != second.operators
    else:
        assert any("waits" in violation for violation in first.violations)


# The graphs themselves ----------------------------------------------------------------------------


class Counted:
    """In the place of torch.cuda's graphs and streams: what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.events: list[str] = []
        events = self.events

        class Graph:
            def replay(self) -> None:
                events.append("replay")

            def pool(self) -> str:
                return "pool"

        class Capture:
            def __init__(self, graph: Graph, pool: Any) -> None:
                events.append(f"capture in {pool}")

            def __enter__(self) -> None:
                if fails:
                    raise RuntimeError("operation not permitted\nwhen stream is capturing")

            def __exit__(self, *error: object) -> None:
                pass

        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: events.append("back"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(captured, "_beside", lambda body: (events.append("beside"), body())[1])


def test_a_shape_runs_once_is_captured_and_then_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    graphs = captured.Graphs(True, pytest.fail, pytest.fail)
    for key in "aaabaabb":
        graphs.run(key, lambda key=key: counted.events.append(key))  # type: ignore[misc]
    a, b = ["capture in None", "a", "replay"], ["capture in pool", "b", "replay"]
    expected = ["beside", "a", *a, "replay", "beside", "b", "replay", "replay", *b, "replay"]
    assert counted.events == expected


def test_a_capture_that_fails_says_so_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted, said = Counted(monkeypatch, fails=True), []
    graphs = captured.Graphs(True, said.append, lambda: counted.events.append("undo"))
    for _ in range(4):
        graphs.run("a", lambda: counted.events.append("a"))
    assert counted.events == ["beside", "a", "capture in None", "back", "undo", "a", "a", "a"]
    assert len(said) == 1 and "operation not permitted when stream is capturing" in said[0]


def test_a_method_that_cannot_says_why_and_takes_the_jagged_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        SASRecMethod, "not_captured", classmethod(lambda cls, config: "it tosses real coins")
    )
    said: list[str] = []
    monkeypatch.setattr(Progress, "line", lambda self, line: said.append(line))
    assert trainer(configured("sasrec"), tmp_path).fixed is None
    assert said == ["seqrec: the step is no CUDA graph: it tosses real coins"]
    # those that inherit from it answer for themselves
    captured_there, *others = doctor._graphs()
    assert (
        captured_there
        == f"steps captured on cuda: {', '.join(m for m in METHODS if m != 'sasrec')}"
    )
    assert others == ["    not sasrec: it tosses real coins"]


# On a GPU -----------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    yield torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_replayed_steps_are_the_ordinary_ones(
    name: str, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; and most of them were replayed."""
    weights = []
    for capture in ("fixed", "auto"):
        replays = 0
        replay = torch.cuda.CUDAGraph.replay

        def counting(graph: torch.cuda.CUDAGraph, replay: Any = replay) -> None:
            nonlocal replays
            replays += 1
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counting)
        made = trainer(configured(name, training__capture=capture), tmp_path / capture, cuda)
        made.run()
        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
        assert made.fixed is not None
        assert made.fixed.runner.replays == (capture == "auto")
        assert replays > 0.4 * made.counters.step if capture == "auto" else replays == 0
        weights.append({key: x.cpu() for key, x in made.method.state_dict().items()})
    for key, x in weights[0].items():
        assert torch.equal(x, weights[1][key]), key
