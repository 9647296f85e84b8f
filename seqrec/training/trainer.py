"""The training loop: shuffle, step, validate, keep the best, stop early, survive anything.

No step waits for the device, and nothing random outlives a step: the order of an epoch and the
dropout of a step are functions of (seed, epoch, step).  A run that was killed and resumed writes
the same bytes as one that was not.
"""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.config import Config
from seqrec.counters import DROPOUT, EPOCH, derive
from seqrec.data.split import Split
from seqrec.data.store import SequenceStore, epoch_order
from seqrec.errors import Interrupted, UsageError
from seqrec.evaluation.ranking import Evaluator
from seqrec.methods.base import Method, Step
from seqrec.training.captured import FixedSteps, Graphs
from seqrec.training.interruption import Interruption
from seqrec.training.journal import Journal
from seqrec.training.model_file import write_model
from seqrec.training.precision import products
from seqrec.training.progress import Progress
from seqrec.training.state import Counters, StateStore


class Trainer:
    """Trains one method in one run directory.

    Args:
        directory: exists, with `config.toml` in it.
        config: resolved.
        split: of the run's log.
        method: with its initial weights; moved to `device`.
        device: where to train.
        progress: what the user sees.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        split: Split,
        method: Method,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.directory = directory
        self.config = config
        self.method = method.to(device)
        self.progress = progress
        self.journal = Journal(directory / "log.jsonl")
        self.states = StateStore(directory)
        self.counters = Counters()
        self.store = SequenceStore(split.train, device)
        self.validation = Evaluator(
            split.valid, config.encoder.max_length, device, config.evaluation.batch
        )
        self.item_counts = torch.from_numpy(
            np.bincount(split.train.values, minlength=split.n_items).astype(np.int64)
        )
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        training = config.training
        self.optimizer = torch.optim.AdamW(
            self.method.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            fused=True,
            capturable=device.type != "cpu",
        )
        self.method.prepare(self.store)
        self.rows = self.method.rows(self.store)
        self.steps = math.ceil(self.rows / training.batch)
        self.fixed = self._fixed_steps(device)
        self._saved_at = time.perf_counter()

    def run(self) -> Counters:
        """Train to the end: early stop, last epoch or last step.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the state is saved.
            UsageError: the loss is no longer a number.
        """
        with Interruption() as stop:
            while not self.counters.finished:
                self._epoch(stop)
        return self.counters

    def restore(self) -> bool:
        """Take up the last saved state; False where there is none."""
        found = self.states.load()
        if found is None:
            return False
        tensors, self.counters, remarks = found
        for remark in remarks:
            self.progress.line(f"seqrec: {remark}")
        if tensors:
            self._unpack(tensors)
        return True

    def _epoch(self, stop: Interruption) -> None:
        counters, training = self.counters, self.config.training
        begun = time.perf_counter()
        earlier = counters.train_seconds
        if counters.step_in_epoch == 0:
            seed = derive(training.seed, EPOCH, counters.epoch)
            with products(training.precision, self.store.device):
                self.method.begin_epoch(self.store, counters.epoch, seed)
        prepared = time.perf_counter() - begun
        order = epoch_order(training.seed, counters.epoch, self.rows)
        if self.fixed is not None:
            self.fixed.begin(counters.epoch, counters.step_in_epoch, counters.step, order)
        self.progress.start(counters.epoch + 1, training.epochs, self.steps, counters.step_in_epoch)
        while counters.step_in_epoch < self.steps and not self._out_of_steps():
            start = counters.step_in_epoch * training.batch
            rows = order[start : start + training.batch]
            self._step(rows)
            counters.step += 1
            counters.step_in_epoch += 1
            counters.train_seconds = earlier + time.perf_counter() - begun
            self.progress.step(counters.step_in_epoch, len(rows), self.loss_sum)
            if stop.requested:
                self._save()
                self.progress.close()
                raise Interrupted(self.directory)
            if time.perf_counter() - self._saved_at > training.save_every:
                self._save()
        self._finish_epoch(time.perf_counter() - begun, prepared)
        if stop.requested and not counters.finished:
            raise Interrupted(self.directory)

    @functools.cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator(self.store.device)

    def _fixed_steps(self, device: torch.device) -> FixedSteps | None:
        """The steps that a graph can replay, where they are wanted and the method has them."""
        capture = self.config.training.capture
        if capture == "off" or (capture == "auto" and device.type != "cuda"):
            return None
        if reason := self.method.not_captured(self.config):
            self.progress.line(f"seqrec: the step is no CUDA graph: {reason}")
            return None
        runner = Graphs(
            capture == "auto",
            say=lambda line: self.progress.line(f"seqrec: {line}"),
            undo=self.optimizer.zero_grad,
        )
        return FixedSteps(self.method, self.store, self.config, self._update, runner)

    def _step(self, rows: np.ndarray) -> None:
        if self.fixed is not None:
            self.fixed.step(len(rows))
            return
        counters, training = self.counters, self.config.training
        self.generator.manual_seed(
            derive(training.seed, DROPOUT, counters.epoch, counters.step_in_epoch)
        )
        step = Step(counters.epoch, counters.step, self.generator)
        batch = self.method.batch(self.store, rows, step)
        with products(training.precision, self.store.device):
            loss = self.method.loss(batch, step)
        self._update(loss)

    def _update(self, loss: Tensor) -> None:
        """What follows the loss of a step; waits for nothing."""
        loss.backward()
        if self.config.training.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.detach()

    def _finish_epoch(self, seconds: float, prepared: float) -> None:
        """Validate, keep the weights if they are the best yet, decide whether to go on."""
        counters, config = self.counters, self.config
        loss = self._mean_loss()
        begun = time.perf_counter()
        rule = config.evaluation.seen
        ranks = self.validation.ranks(self.method, [rule])[rule]
        metrics = ranks.metrics(config.evaluation.ks, config.evaluation.ties)
        counters.epoch += 1
        counters.step_in_epoch = 0
        self.loss_sum.zero_()
        value = metrics[config.evaluation.select]
        best = value > counters.best_value
        if best:
            counters.best_epoch, counters.best_value = counters.epoch, value
            write_model(self.directory, self.method, self.item_counts, config)
        idle = counters.epoch - counters.best_epoch
        counters.finished = (
            counters.epoch >= config.training.epochs
            or idle >= config.training.patience
            or self._out_of_steps()
        )
        phase = "warmup" if counters.epoch <= config.method.warmup_epochs else "main"
        valid_seconds = time.perf_counter() - begun
        self.journal.write(
            "epoch",
            epoch=counters.epoch,
            step=counters.step,
            phase=phase,
            **self.method.facts(counters.epoch - 1),
            loss=loss,
            valid=metrics,
            seconds=round(seconds, 3),
            prepare_seconds=round(prepared, 3),
            valid_seconds=round(valid_seconds, 3),
        )
        self._save()
        select = config.evaluation.select
        self.progress.line(
            f"epoch {counters.epoch:>3}  loss {loss:.4f}  valid {select} {value:.4f}"
            f"{' *' if best else '  '}  {seconds:.1f} s + {valid_seconds:.1f} s validation"
        )

    def _out_of_steps(self) -> bool:
        return 0 < self.config.training.max_steps <= self.counters.step

    def _mean_loss(self) -> float:
        """Over the epoch's steps so far; waits for the device."""
        counters, training = self.counters, self.config.training
        loss = float(self.loss_sum) / max(counters.step_in_epoch, 1)
        if not math.isfinite(loss):
            self.progress.close()
            raise UsageError(
                f"the loss became {loss} in epoch {counters.epoch + 1}",
                f"training.lr = {training.lr}",
                "lower training.lr or training.clip_norm and train again with --overwrite",
            )
        return loss

    def _save(self) -> None:
        self._mean_loss()  # a state that leads nowhere must not push out the last that did not
        self.states.save(self._pack(), self.counters)
        self._saved_at = time.perf_counter()

    def _pack(self) -> dict[str, Tensor]:
        """Everything a step depends on, as tensors on the host."""
        tensors = {f"method.{name}": x for name, x in self.method.state_dict().items()}
        names = [name for name, _ in self.method.named_parameters()]
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, x in state.items():
                tensors[f"optimizer.{key}.{names[index]}"] = x
        tensors["loss_sum"] = self.loss_sum
        return {name: x.detach().cpu().contiguous() for name, x in tensors.items()}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        prefix = "method."
        self.method.load_state_dict(
            {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        )
        states: dict[int, dict[str, Any]] = {}
        for index, (name, _) in enumerate(self.method.named_parameters()):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{key}.{name}" in tensors:
                    states.setdefault(index, {})[key] = tensors[f"optimizer.{key}.{name}"]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.loss_sum.copy_(tensors["loss_sum"])
