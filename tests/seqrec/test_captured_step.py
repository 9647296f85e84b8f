"""The step in fixed shapes: a CUDA graph could replay it, and it is the jagged step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from far_device import FAR, FarDevice, Region
from little import SETTINGS, split
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqrec import doctor, draws
from seqrec.config import Config, load_config
from seqrec.counters import DROPOUT, derive
from seqrec.data.store import JaggedBatch, epoch_order
from seqrec.methods import METHODS, build, contrastive, method_class
from seqrec.methods.base import FixedStep, Method, Step
from seqrec.methods.sasrec import SASRecMethod
from seqrec.negatives.histories import Rows
from seqrec.training import captured
from seqrec.training.journal import read_journal
from seqrec.training.progress import Progress
from seqrec.training.trainer import Trainer
from seqrec_kernels import native, triton_loader
from seqrec_kernels.backend import _operators

SPLIT = split()
WARMUP = 2

#: name -> method, the epoch its steps are of, and settings
STEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sasrec": ("sasrec", 0, {}),
    "sasrec-prefixes": ("sasrec", 0, {"method.rows": "prefixes"}),
    "sasrec-postnorm": ("sasrec", 0, {"encoder.name": "sasrec-postnorm"}),
    "icsrec": ("icsrec", 0, {"method.clusters": 4}),
    "icsrec-last": ("icsrec", 0, {"method.clusters": 4, "method.positive": "last"}),
    "fenrec-warmup": ("fenrec", 0, {"method.clusters": 4}),
    "fenrec-main": ("fenrec", WARMUP, {"method.clusters": 4, "method.mix_spread": 0.1}),
    "fenrec-paper": (
        "fenrec",
        WARMUP,
        {
            "encoder.name": "sasrec-postnorm",
            "method.clusters": 4,
            "method.contrast_form": "paper",
            "method.label_place": "first",
        },
    ),
    "cl4srec": ("cl4srec", 0, {}),
    "duorec": ("duorec", 0, {}),
    "duorec-dropout": ("duorec", 0, {"method.positive": "dropout"}),
    "sasrec-sampled": ("sasrec-sampled", 0, {"method.loss": "softmax", "negatives.count": 2}),
    "sasrec-popular": (
        "sasrec-sampled",
        0,
        {
            "method.rows": "prefixes",
            "method.loss": "bpr",
            "negatives.sampler": "popularity",
            "negatives.exclude": "sequence",
        },
    ),
    "sasrec-mixgcf": (
        "sasrec-sampled",
        0,
        {"negatives.sampler": "mixgcf+", "negatives.pool": 9, "negatives.top_m": 4},
    ),
    "r2ns-warmup": ("r2ns", 0, {}),
    "r2ns-main": ("r2ns", WARMUP, {"negatives.recall": 4, "negatives.pool": 6}),
    "r2ns-published": (
        "r2ns",
        WARMUP,
        {"method.rows": "positions", "negatives.form": "published", "negatives.recall": 9},
    ),
}


def configured(name: str, **sets: Any) -> Config:
    method, _, asked = STEPS[name]
    asked = {**SETTINGS, **asked, **{key.replace("__", "."): x for key, x in sets.items()}}
    if method in ("fenrec", "r2ns"):
        asked["method.warmup_epochs"] = WARMUP
    asked.setdefault("training.capture", "fixed")
    return load_config(method, sets=asked, flags={"data.path": "-"})


def trainer(config: Config, directory: Path, device: str | torch.device = "cpu") -> Trainer:
    """Ready for its first step; weights far from where they began."""
    directory.mkdir(exist_ok=True)
    method = build(config, SPLIT.n_items)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    made = Trainer(directory, config, SPLIT, method, torch.device(device), Progress(False))
    made.method.begin_epoch(made.store, 0, 0)
    return made


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


# The same function --------------------------------------------------------------------------------


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parameters are float64, and so is what they meet.

    The noise of a step draws from a seed of its own, however many were asked for before it.
    """

    def drawn(rows: int, columns: int, source: draws.Draws, device: torch.device) -> Tensor:
        return draws.normal(rows, columns, draws.Draws(source._root + 1000), device).double()

    monkeypatch.setattr(contrastive, "normal", drawn)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass
class Both:
    """One step of a method, in both forms.

    Attributes:
        fixed, jagged: (batch, step) each.
    """

    method: Method
    fixed: tuple[Any, FixedStep]
    jagged: tuple[Any, Step]


def both(name: str, directory: Path, room: int = 1, **sets: Any) -> Both:
    """A step's two forms, drawing the same numbers.

    Args:
        room: how many times the buffer is larger than it must be.
    """
    config, epoch, at = configured(name, **sets), STEPS[name][1], 3
    made = trainer(config, directory)
    method = made.method
    labels = getattr(method, "_labels", None)
    if labels is not None and torch.get_default_dtype() == torch.float64:
        labels._weights = labels._weights.double()
    fixed = made.fixed
    assert fixed is not None
    order = epoch_order(3, epoch, made.rows)
    fixed.begin(epoch, at - 1, 41, order)
    fixed._capacities = {count: size * room for count, size in fixed._capacities.items()}
    taken: list[tuple[Any, FixedStep]] = []

    def take(batch: Any, step: FixedStep) -> Tensor:
        taken.append((batch, step))
        return torch.zeros(())

    method.loss = take  # type: ignore[method-assign]
    fixed.update = lambda loss: None
    fixed.step(16)
    del method.loss
    step = Step(epoch, 41, taken[0][1].generator)  # type: ignore[arg-type]
    jagged = method.batch(made.store, order[16 * (at - 1) : 16 * at], step)
    return Both(method, taken[0], (jagged, step))


def gradients(method: Method, batch: Any, step: Any) -> tuple[Tensor, list[Tensor]]:
    step.generator._asked = 0
    loss = method.loss(batch, step)
    found = torch.autograd.grad(loss, list(method.parameters()), materialize_grads=True)
    return loss.detach(), list(found)


def agree(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=0)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", STEPS)
def test_the_batch_is_the_jagged_one_and_a_tail(name: str, tmp_path: Path) -> None:
    made = both(name, tmp_path)
    fixed, targets, *labels = made.fixed[0]
    jagged, wanted, *others = made.jagged[0]
    assert isinstance(jagged, JaggedBatch)
    filled = jagged.items.numel()
    assert fixed.items.numel() > filled  # there is a tail
    assert torch.equal(fixed.offsets, jagged.offsets)
    assert torch.equal(fixed.items[:filled], jagged.items)
    assert torch.equal(targets[: len(wanted)], wanted) and (targets[len(wanted) :] == -1).all()
    for mine, theirs in zip(labels, others, strict=True):
        if isinstance(mine, Rows):  # what is met stands in a buffer with a tail as well
            mine = (
                *(part[: len(wanted)] for part in mine[:3]),
                mine.seen.ids[: theirs.seen.ids.numel()],
            )
            theirs = (*theirs[:3], theirs.seen.ids)
        for one, other in zip(mine or (), theirs or (), strict=True):
            assert torch.equal(one, other)
    for said in ("rows", "places", "places_from_end"):
        mine, theirs = getattr(fixed, said)(), getattr(jagged, said)()
        assert torch.equal(mine[:filled], theirs)
        tail = mine[filled:]
        assert (tail >= 0).all() and (tail < max(len(jagged), 6)).all()
    assert torch.equal(fixed.last(), jagged.last())


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", STEPS)
def test_loss_and_gradients_are_the_jagged_steps(name: str, tmp_path: Path) -> None:
    made = both(name, tmp_path, encoder__dropout=0.0)
    one, other = gradients(made.method, *made.fixed), gradients(made.method, *made.jagged)
    assert float(one[0]) > 0.1
    assert all(float(g.abs().max()) > 1e-6 for g in one[1][:2])
    agree(one, other)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", STEPS)
def test_a_longer_tail_changes_nothing(name: str, tmp_path: Path) -> None:
    """With dropout: what is drawn for a token does not depend on the size of the buffer."""
    narrow, wide = both(name, tmp_path / "a"), both(name, tmp_path / "b", room=3)
    assert len(wide.fixed[0][0].items) == 3 * len(narrow.fixed[0][0].items)
    agree(gradients(narrow.method, *narrow.fixed), gradients(wide.method, *wide.fixed))


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
@pytest.mark.parametrize("name", ["sasrec", "sasrec-prefixes", "sasrec-postnorm", "fenrec-paper"])
def test_the_fused_step_is_the_jagged_one_with_dropout(name: str, tmp_path: Path) -> None:
    """What the C++ draws for a token goes by its place; both forms give it the same seeds."""
    made = both(name, tmp_path, encoder__dim=32)
    one, other = gradients(made.method, *made.fixed), gradients(made.method, *made.jagged)
    torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=0)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_the_seeds_of_a_step_are_the_hosts(tmp_path: Path) -> None:
    made = both("fenrec-main", tmp_path)
    (_, fixed), (_, jagged) = made.fixed, made.jagged
    assert int(fixed.epoch_tensor) == jagged.epoch == WARMUP
    assert len(made.method.seeds) == 4
    for asked in made.method.seeds:
        purpose, *numbers = asked
        assert int(fixed.seed(3, purpose, *numbers)) == jagged.seed(3, purpose, *numbers)
        assert jagged.seed(3, purpose, *numbers) == derive(3, purpose, 41, *numbers)
    assert int(fixed.generator._root) == derive(3, DROPOUT, WARMUP, 2)


# Training -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", ["sasrec", "sasrec-prefixes", "icsrec", "cl4srec", "r2ns-main"])
def test_training_in_fixed_shapes_is_training(name: str, tmp_path: Path) -> None:
    """Without dropout the two forms are one run; in float64, where rounding moves no rank."""
    losses = {}
    for capture in ("off", "fixed"):
        config = configured(name, encoder__dropout=0.0, training__capture=capture)
        made = trainer(config, tmp_path / capture)
        assert (made.fixed is None) == (capture == "off")
        made.run()
        losses[capture] = [
            (entry["loss"], *entry["valid"].values())
            for entry in read_journal(tmp_path / capture / "log.jsonl")
            if entry["event"] == "epoch"
        ]
    assert len(losses["off"]) == 3
    np.testing.assert_allclose(losses["fixed"], losses["off"], rtol=1e-6)


def test_an_epoch_needs_one_shape_and_one_for_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many graphs as there are phases, row counts and buffer sizes."""
    keys: list[Any] = []
    run = captured.Graphs.run

    def spy(self: captured.Graphs, key: Any, body: Any) -> None:
        keys.append(key)
        run(self, key, body)

    monkeypatch.setattr(captured.Graphs, "run", spy)
    made = trainer(configured("fenrec-main"), tmp_path)
    made.run()
    assert len(keys) == 3 * made.steps
    last = made.rows % 16
    assert {(phase, count) for phase, count, _ in keys} == {
        (phase, count) for phase in ("warmup", "main") for count in (16, last)
    }
    assert len(set(keys)) <= 6


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
