"""A run that is stopped anywhere, in any way, ends in the same bytes as one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from resumed import SETS, Killed, assert_same, bytes_of, epochs, facts

import seqrec
from seqrec import api, files, rundir
from seqrec.cli import main
from seqrec.errors import Interrupted, UsageError
from seqrec.methods.sasrec import SASRecMethod
from seqrec.run import Run
from seqrec.training import finish, state
from seqrec.training.journal import read_journal


@pytest.fixture
def data(whole: Run) -> Path:
    return Path(whole.config.data.path)


# Killed at every write ----------------------------------------------------------------------------


class Executioner:
    """Lets all operations that change the disk pass but the k-th, and none after it.

    Args:
        torn: the k-th operation, where it writes a file, leaves half of it behind.
    """

    def __init__(self, patch: pytest.MonkeyPatch, k: int, torn: bool = False) -> None:
        self.count = 0
        self.k = k
        self.torn = torn
        self.dead = False
        for where, name in (
            (os, "replace"),
            (os, "fsync"),
            (shutil, "rmtree"),
            (shutil, "copyfile"),
            (Path, "mkdir"),
            (Path, "unlink"),
            (Path, "write_bytes"),
            (Path, "write_text"),
            (state, "save_file"),
        ):
            patch.setattr(where, name, self._guarded(getattr(where, name), name))

    def _guarded(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.dead or self.count == self.k:
                if not self.dead and self.torn:
                    self._tear(original, name, args, kwargs)
                self.dead = True
                raise Killed
            return original(*args, **kwargs)

        return operation

    @staticmethod
    def _tear(original: Callable[..., Any], name: str, args: Any, kwargs: Any) -> None:
        if name in ("write_bytes", "write_text"):
            original(args[0], args[1][: len(args[1]) // 2], **kwargs)
        elif name in ("save_file", "copyfile"):
            original(*args, **kwargs)
            written = Path(args[1])
            content = written.read_bytes()
            with open(written, "wb") as stream:
                stream.write(content[: len(content) // 2])
        elif name == "rmtree" and Path(args[0]).exists():
            for file in list(Path(args[0]).iterdir())[:1]:
                os.remove(file)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """git is slow and asked twice a run; what fsync promises shows only when the power fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(api, "commit", lambda: None)
    monkeypatch.setattr(finish, "commit", lambda: None)


def killed_at(k: int, data: Path, out: Path, *, torn: bool = False, resume: bool = False) -> bool:
    """Train or resume with the k-th change of the disk as the last; False: it came to an end."""
    with pytest.MonkeyPatch.context() as patch:
        Executioner(patch, k, torn)
        try:
            if resume:
                seqrec.resume(out, progress=False)
            else:
                seqrec.train("sasrec", data, out, sets=SETS, progress=False)
        except Killed:
            return True
    return False


def finished(data: Path, out: Path) -> Run:
    """What a user does then: resume, or, where no run was begun yet, train."""
    if (out / rundir.CONFIG).exists():
        return seqrec.resume(out, progress=False)
    with pytest.raises(UsageError, match=r"no run in .*no config\.toml"):
        seqrec.resume(out, progress=False)
    return seqrec.train("sasrec", data, out, sets=SETS, progress=False)


def writes(data: Path, out: Path) -> int:
    """How often an unstopped run changes the disk."""
    with pytest.MonkeyPatch.context() as patch:
        counter = Executioner(patch, 0)
        seqrec.train("sasrec", data, out, sets=SETS, progress=False)
        return counter.count


@pytest.mark.slow
def test_killed_at_any_write_and_resumed_it_ends_in_the_same_bytes(
    data: Path, whole: Run, tmp_path: Path, quiet: None
) -> None:
    n = writes(data, tmp_path / "counted")
    assert n > 100
    for k in range(1, n + 1):
        out = tmp_path / f"run-{k}"
        assert killed_at(k, data, out, torn=k % 2 == 0), k
        assert_same(finished(data, out), whole)
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    data: Path, whole: Run, tmp_path: Path, quiet: None
) -> None:
    """Each life lasts a random number of writes; the run moves on all the same."""
    for seed in range(6):
        rng = random.Random(seed)
        out = tmp_path / f"run-{seed}"
        assert killed_at(rng.randrange(30, 60), data, out, torn=True)
        lives = 1
        while killed_at(rng.randrange(5, 60), data, out, torn=lives % 2 == 0, resume=True):
            lives += 1
            assert lives < 100
        assert lives > 2
        assert_same(finished(data, out), whole)


def test_write_atomic_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, "old")
    k = 0
    while True:
        k += 1
        with pytest.MonkeyPatch.context() as patch:
            Executioner(patch, k, torn=True)
            try:
                files.write_atomic(path, "new content")
            except Killed:
                assert path.read_text() in ("old", "new content")
                continue
        break
    assert k > 4
    assert path.read_text() == "new content"


# Killed by the operating system -------------------------------------------------------------------


def command(*words: str | Path, threads: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "seqrec.cli", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 120
        time.sleep(0.005)


@pytest.mark.slow
def test_kill_9_at_random_moments_and_ctrl_c_in_real_processes(data: Path, tmp_path: Path) -> None:
    sets = SETS | {"training.epochs": 30, "training.patience": 30, "training.save_every": 0.05}
    words = [f"{name}={value}" for name, value in sets.items()]
    whole = command("train", "sasrec", "--data", data, "--out", tmp_path / "whole", "--set", *words)
    assert whole.wait() == 0, whole.communicate()

    out = tmp_path / "run"
    log = out / "log.jsonl"

    def epochs_done() -> int:
        return log.read_bytes().count(b'"epoch", "epoch"') if log.exists() else 0

    rng = random.Random(0)
    process = command("train", "sasrec", "--data", data, "--out", out, "--set", *words)
    for target, how in ((1, signal.SIGKILL), (8, signal.SIGINT), (16, signal.SIGKILL)):
        wait_for(lambda target=target: epochs_done() >= target, process)  # type: ignore[misc]
        time.sleep(rng.random() * 0.1)
        process.send_signal(how)
        stdout, stderr = process.communicate()
        assert not (out / "result.json").exists()
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert stdout == ""
            assert f"seqrec resume {out}" in stderr.splitlines()[-1]
            assert "Traceback" not in stderr
        process = command("resume", out)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert facts(Run(out)) == facts(Run(tmp_path / "whole"))
    assert epochs(Run(out)) == epochs(Run(tmp_path / "whole"))


# Ctrl-C -------------------------------------------------------------------------------------------


AT_FIRST = signal.getsignal(signal.SIGINT)  # ignored, where a shell started this in the background


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Send this process a signal at the k-th training step (from 0) of the whole run."""

    def at(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        loss = SASRecMethod.loss
        left = [times]

        def spy(self: SASRecMethod, batch: Any, of: Any) -> Any:
            if of.step == step:
                while left[0] > 0:
                    left[0] -= 1
                    os.kill(os.getpid(), number)
            return loss(self, batch, of)

        monkeypatch.setattr(SASRecMethod, "loss", spy)

    return at  # type: ignore[return-value]


@pytest.mark.parametrize("step", range(4))
def test_ctrl_c_at_any_step_saves_and_says_how_to_resume(
    data: Path,
    whole: Run,
    tmp_path: Path,
    signalled: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    out = tmp_path / "a run"
    sets = SETS | {"training.save_every": 1e9}
    signalled(step, signal.SIGTERM if step == 1 else signal.SIGINT)
    words = [f"{name}={value}" for name, value in sets.items()]
    code = main(["train", "sasrec", "--data", str(data), "--out", str(out), "--set", *words])
    stdout, stderr = capsys.readouterr()
    assert code == 130 and stdout == ""
    assert f"seqrec resume '{out}'" in stderr.splitlines()[-1]
    assert not (out / "result.json").exists()
    assert signal.getsignal(signal.SIGINT) is AT_FIRST

    resumed = seqrec.resume(out, progress=False)
    start = [e for e in read_journal(out / "log.jsonl") if e["event"] == "resume"]
    assert [event["step"] for event in start] == [step + 1]  # not one step is done again
    assert bytes_of(resumed) == bytes_of(whole)
    assert epochs(resumed) == epochs(whole)


def test_a_second_ctrl_c_stops_at_once_and_the_run_can_still_be_resumed(
    data: Path, whole: Run, tmp_path: Path, signalled: Callable[..., None]
) -> None:
    signalled(3, times=2)
    sets = SETS | {"training.save_every": 1e9}
    with pytest.raises(Interrupted, match="run"):
        seqrec.train("sasrec", data, tmp_path / "run", sets=sets, progress=False)
    resumed = seqrec.resume(tmp_path / "run", progress=False)
    events = read_journal(tmp_path / "run" / "log.jsonl")
    # one Ctrl-C would have saved step 4; this goes back to the end of the first epoch
    assert [event["step"] for event in events if event["event"] == "resume"] == [2]
    assert bytes_of(resumed) == bytes_of(whole)


@pytest.mark.parametrize(("where", "name"), [(api, "build"), (finish, "judge_rulers")])
def test_ctrl_c_before_and_after_the_training_also_says_how_to_resume(
    data: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(Interrupted):
            seqrec.train("sasrec", data, tmp_path / "run", sets=SETS, progress=False)
    assert not (tmp_path / "run" / "result.json").exists()
    assert_same(seqrec.resume(tmp_path / "run", progress=False), whole)


def test_outside_the_main_thread_a_run_trains_and_leaves_signals_alone(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    """Where Python installs no handlers; a notebook's server is such a place."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            seqrec.train, "sasrec", data, tmp_path / "run", sets=SETS, progress=False
        ).result()
    assert_same(run, whole)
    assert signal.getsignal(signal.SIGINT) is AT_FIRST
