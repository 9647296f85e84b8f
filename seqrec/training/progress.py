"""One line on stderr that says how the training goes."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import torch
from torch import Tensor


class Progress:
    """Epoch, steps, loss, speed and time left; redrawn on a terminal, a line an epoch elsewhere.

    The loss is read from the device at most twice a second and never waited for: a copy is started
    at one redraw and shown at the next.

    Args:
        enabled: None means "where stderr is a terminal"; the lines of finished epochs are written
            unless this is False.
        stream: where to write; stderr by default.
    """

    REFRESH = 0.5  # seconds

    def __init__(self, enabled: bool | None = None, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.lines = enabled is not False
        self.live = self.lines and self.stream.isatty()
        self._begun = self._drawn = 0.0
        self._first_step = 0
        self._rows = 0
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._width = 0
        self._title = self._loss = ""
        self._steps = 0

    def start(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """An epoch begins (or goes on, at `step`); epochs count from 1."""
        self._title = f"epoch {epoch}/{epochs}"
        self._steps, self._first_step, self._rows = steps, step, 0
        self._begun = self._drawn = time.perf_counter()
        self._pending = None
        self._loss = ""

    def step(self, step: int, rows: int, loss_sum: Tensor) -> None:
        """A step is done; `loss_sum` is the sum of the epoch's losses so far, on the device."""
        self._rows += rows
        now = time.perf_counter()
        if not self.live or now - self._drawn < self.REFRESH:
            return
        self._drawn = now
        self._read(loss_sum, step)
        done = step - self._first_step
        left = (now - self._begun) / done * (self._steps - step)
        speed = self._rows / (now - self._begun)
        filled = round(20 * step / self._steps)
        self._draw(
            f"{self._title} [{'=' * filled}{' ' * (20 - filled)}] {step}/{self._steps}"
            f"{self._loss}  {speed:,.0f} rows/s  {_clock(left)} left"
        )

    def _read(self, loss_sum: Tensor, step: int) -> None:
        if self._pending is not None:
            copy, event = self._pending
            if event is None or event.query():
                total, steps = copy.tolist()
                self._loss = f"  loss {total / steps:.4f}"
                self._pending = None
        if self._pending is None:
            value = torch.stack([loss_sum, loss_sum.new_tensor(float(step))])
            if value.is_cuda:
                copy = torch.empty(2, dtype=value.dtype, pin_memory=True)
                copy.copy_(value, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
                self._pending = copy, event
            else:
                self._pending = value, None

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.lines:
            self._draw("")
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the terminal's line clean."""
        self._draw("")

    def _draw(self, text: str) -> None:
        if not self.live:
            return
        blank = " " * max(0, self._width - len(text))
        self.stream.write(f"\r{text}{blank}" + ("\r" if not text else ""))
        self.stream.flush()
        self._width = len(text)


def _clock(seconds: float) -> str:
    """67 -> 1:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
