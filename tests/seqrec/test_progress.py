"""What the user sees while a run trains."""

from __future__ import annotations

import io
import re

import pytest
import torch

from seqrec.training.progress import Progress, _clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> str:
    """The last line as a terminal shows it: a carriage return writes over what stands there."""
    shown: list[str] = []
    for part in text.rpartition("\n")[2].split("\r"):
        shown[: len(part)] = part
    return "".join(shown)


def steps(progress: Progress, first: int, last: int, loss: float = 2.0) -> None:
    for step in range(first, last + 1):
        progress.step(step, 10, torch.tensor(loss * step))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redraw at every step, with a clock that ticks one second a look."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(Progress, "REFRESH", 0.0)
    monkeypatch.setattr("seqrec.training.progress.time.perf_counter", lambda: float(next(ticks)))


def test_the_bar_says_epoch_steps_loss_speed_and_time_left(eager: None) -> None:
    stream = Terminal()
    progress = Progress(None, stream)
    progress.start(2, 5, 8, 0)
    steps(progress, 1, 4)
    # 4 steps of 10 rows in 4 seconds; 4 more steps to go; the loss is the mean, not the sum
    assert screen(stream.getvalue()).strip() == (
        "epoch 2/5 [==========          ] 4/8  loss 2.0000  10 rows/s  0:04 left"
    )


def test_after_a_resume_in_mid_epoch_speed_and_time_left_count_new_steps_only(eager: None) -> None:
    stream = Terminal()
    progress = Progress(None, stream)
    progress.start(1, 1, 100, 90)
    steps(progress, 91, 92)
    text = screen(stream.getvalue())
    assert "92/100" in text and "10 rows/s" in text and "0:08 left" in text


def test_a_line_replaces_the_bar_and_close_leaves_nothing(eager: None) -> None:
    stream = Terminal()
    progress = Progress(None, stream)
    progress.start(1, 1, 3, 0)
    steps(progress, 1, 2)
    progress.line("kept")
    before, _, after = stream.getvalue().rpartition("kept\n")
    assert screen(before).strip() == "" and after == ""
    steps(progress, 3, 3)
    progress.close()
    assert screen(stream.getvalue()).strip() == ""


def test_elsewhere_than_on_a_terminal_only_lines_are_written(eager: None) -> None:
    stream = io.StringIO()
    progress = Progress(None, stream)
    progress.start(1, 1, 3, 0)
    steps(progress, 1, 3)
    progress.line("epoch 1")
    progress.close()
    assert stream.getvalue() == "epoch 1\n"


def test_switched_off_it_is_silent(eager: None) -> None:
    stream = Terminal()
    progress = Progress(False, stream)
    progress.start(1, 1, 3, 0)
    steps(progress, 1, 3)
    progress.line("epoch 1")
    progress.close()
    assert stream.getvalue() == ""


def test_it_redraws_at_most_twice_a_second() -> None:
    stream = Terminal()
    progress = Progress(None, stream)
    progress.start(1, 1, 1000, 0)
    steps(progress, 1, 1000)
    assert len(re.findall("epoch 1/1", stream.getvalue())) <= 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (67, "1:07"), (59.7, "1:00"), (3600, "1:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert _clock(seconds) == text
