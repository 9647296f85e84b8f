"""The training step as one CUDA graph: captured once for each shape, replayed without the host.

A kernel of a graph is replayed with the arguments it was captured with.  So whatever changes from
step to step stands in tensors: the order of the epoch's rows, the seeds of its steps, and a counter
that says which step it is and that the step itself moves on.  They are written before an epoch; the
steps then need nothing from the host but to be launched.

A step has a fixed shape: `training.batch` rows (or, the last of an epoch, those that are left) in a
buffer that holds any batch of the epoch (`seqrec.data.fixed`).  Its first run is an ordinary one,
on a stream of its own as captures ask for; from the second on it is replayed.  All of them are
steps of the training: the graph's operators, run one by one, are the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import DROPOUT, derive
from seqrec.data.fixed import capacity
from seqrec.data.store import SequenceStore
from seqrec.draws import Draws
from seqrec.methods.base import FixedStep, Method
from seqrec.training.precision import products


class FixedSteps:
    """The steps of a run in fixed shapes.

    Args:
        method: prepared, on its device; its `not_captured` is None.
        store: of the training sequences.
        config: of the run.
        update: what is done with the loss of a step: backward, optimizer.
        runner: runs a step, perhaps from a graph.
    """

    def __init__(
        self,
        method: Method,
        store: SequenceStore,
        config: Config,
        update: Callable[[Tensor], None],
        runner: Graphs,
    ) -> None:
        self.method, self.store, self.training = method, store, config.training
        self.update, self.runner = update, runner
        rows = method.rows(store)
        steps = -(-rows // self.training.batch)
        device = store.device
        self._order = torch.zeros(rows, dtype=torch.int64, device=device)
        self._seeds = torch.zeros(steps, 1 + len(method.seeds), dtype=torch.int64, device=device)
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._capacities: dict[int, int] = {}
        self._phase = ""
        self._host_epoch = 0

    def begin(self, epoch: int, first: int, done: int, order: np.ndarray) -> None:
        """Write down what the steps of an epoch need.

        Args:
            epoch: from 0.
            first: the step of the epoch that comes next, from 0.
            done: steps of all epochs before it.
            order: int64 [rows], the epoch's.
        """
        seed, size = self.training.seed, self.training.batch
        before = done - first  # steps before this epoch
        seeds = [
            [
                derive(seed, DROPOUT, epoch, step),
                *(derive(seed, purpose, before + step, *n) for purpose, *n in self.method.seeds),
            ]
            for step in range(len(self._seeds))
        ]
        self._seeds.copy_(torch.tensor(seeds))
        self._order.copy_(torch.from_numpy(order))
        self._epoch.fill_(epoch)
        self._counter.fill_(first)
        tokens = self.method.tokens(self.store, epoch)[order]
        sums = np.add.reduceat(tokens, np.arange(0, len(tokens), size))
        whole = len(order) // size
        self._capacities = {len(order) - whole * size: capacity(sums[whole:])}
        self._capacities[size] = capacity(sums[:whole])
        self._phase, self._host_epoch = self.method.phase(epoch), epoch

    def step(self, count: int) -> None:
        """The next step of the epoch.

        Args:
            count: its rows.
        """
        size = self._capacities[count]
        self.runner.run((self._phase, count, size), lambda: self._step(count, size))

    def _step(self, count: int, size: int) -> None:
        flat = torch.arange(count, device=self.store.device)
        rows = self._order[self._counter * self.training.batch + flat]
        dropout, *others = self._seeds.index_select(0, self._counter)[0].unbind()
        seeds = dict(zip(self.method.seeds, others, strict=True))
        step = FixedStep(self._host_epoch, self._epoch, Draws(dropout), seeds)
        batch = self.method.fixed_batch(self.store, rows, size, step)
        with products(self.training.precision, self.store.device):
            loss = self.method.loss(batch, step)
        self.update(loss)
        self._counter += 1


class Graphs:
    """Runs functions without arguments, and replays those that it has run before.

    Args:
        replays: whether to; else every call is an ordinary one.
        say: told, in one line, where a capture failed and the steps go on without.
        undo: takes back what a body that broke off has left behind.
    """

    def __init__(self, replays: bool, say: Callable[[str], None], undo: Callable[[], None]) -> None:
        self.replays, self._say, self._undo = replays, say, undo
        self._ready: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, body: Callable[[], None]) -> None:
        """Run `body`, or replay what it did before under this key.

        Args:
            key: equal where the body would call the same operators on the same memory.
            body: touches nothing but tensors that live on.
        """
        if not self.replays:
            body()
        elif key in self._graphs:
            self._graphs[key].replay()
        elif key not in self._ready:
            self._ready.add(key)
            _beside(body)
        else:
            self._capture(key, body)

    def _capture(self, key: Hashable, body: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool):
                body()
        except RuntimeError as error:
            self.replays = False
            reason = " ".join(str(error).split())
            self._say(f"the step could not be captured and runs without a graph: {reason}")
            torch.cuda.set_stream(stream)  # torch leaves its own where the capture's end fails too
            self._undo()
            body()
            return
        self._graphs[key] = graph
        graph.replay()


def _beside(body: Callable[[], None]) -> None:
    """Run on a stream of its own: what is allocated lazily is there before a capture."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        body()
    current.wait_stream(stream)
