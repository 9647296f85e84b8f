"""The command: every mistake is one line and exit 2, results are on stdout, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import IO

import pytest
from little import QUICK, SMALL, TRAIN, Command, tree

from seqrec import api, cli
from seqrec.errors import Interrupted, LeakError

# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [],
            "no command (seqrec); one of train, resume, evaluate, recommend, compare, data, "
            "doctor, bench; ",
        ),
        (["trian"], "unknown command 'trian' (seqrec); did you mean train?"),
        (["zzz"], "unknown command 'zzz' (seqrec); the commands: train, resume, evaluate, "),
        (["--vers"], "unknown option --vers (seqrec); did you mean --version?"),
        (["train"], "missing METHOD, --data, --out (seqrec train); see `seqrec train --help`"),
        (["train", "sasrec", "--data", "x"], "missing --out (seqrec train); see `seqrec tra"),
        (
            ["train", "sasrec", "--dta", "x", "--out", "y"],
            "unknown option --dta (seqrec train); did you mean --data?",
        ),
        ([*TRAIN, "--epoch", "1"], "unknown option --epoch (seqrec train); did you mean --epochs?"),
        ([*TRAIN, "extra"], "unexpected argument 'extra' (seqrec train); see `seqrec train --"),
        (
            ["train", "sasrec", "--data", "--out", "y"],
            "--data: expected one argument (seqrec train); see `seqrec train --help`",
        ),
        (
            [*TRAIN, "--epochs", "many"],
            "--epochs: 'many' is no whole number, at least 1 (seqrec train); see `seqrec train -",
        ),
        (
            ["train", "sasrec", "--data", SMALL, "--out="],
            "--out: '' names nothing (seqrec train); ",
        ),
        (["recommend", "x", "--input", ""], "--input: '' names nothing (seqrec recommend); see "),
        (["bench", "foo"], "no family 'foo'; there are "),
        (["bench", "--shapes", "huge"], "argument --shapes: 'huge' is not of "),
        (["data", ""], "FILE: '' names nothing (seqrec data); see `seqrec data --help`"),
        ([*TRAIN, "--epochs", "0"], "--epochs: '0' is no whole number, at least 1 (seqrec train)"),
        ([*TRAIN, "--device", "gpu"], "--device: 'gpu' is not auto, cpu or cuda (seqrec train); "),
        ([*TRAIN, "--seed", str(2**63)], f"training.seed is {2**63} (--seed {2**63}); must be a "),
        (
            ["train", "sasrc", "--data", SMALL, "--out", "out"],
            "unknown method 'sasrc' (METHOD); did you mean sasrec?",
        ),
        (
            [*TRAIN, "--set", "training.epoch=1"],
            "unknown key 'training.epoch' (--set training.epoch=1); did you mean training.epochs?",
        ),
        ([*TRAIN, "--preset", "nope"], "unknown preset 'nope' (--preset); "),
        ([*TRAIN, "--preset", "tuned"], "no tuned preset was made for this data (--preset tuned, "),
        ([*TRAIN, "--config", "no.toml"], "cannot read it: No such file or directory (no.toml); "),
        (["train", "sasrec", "--data", "no.csv", "--out", "out"], ""),
        (["train", "sasrec", "--data", ".", "--out", "out"], ""),
        (["train", "sasrec", "--data", "synthetic:user=9", "--out", "out"], ""),
        (["train", "sasrec", "--data", "log.txt", "--out", "log.txt"], ""),
        (["train", "sasrec", "--data", "two.txt", "--out", "out"], ""),
        (["resume", "nowhere"], ""),
        (["evaluate", "nowhere"], ""),
        (
            ["evaluate", "x", "--seen", "exlude"],
            "--seen: 'exlude' is not exclude, include or zero (seqrec evaluate); see `seqrec ev",
        ),
        (["recommend", "nowhere", "--input", "log.txt"], ""),
        (["recommend", "x", "--input", "-", "--k", "0"], "--k: '0' is no whole number, at least 1"),
        (
            ["recommend", "x", "--input", "-", "--out", "no/where"],
            "no place for a file (--out no/where); name one in a directory",
        ),
        (["data"], "missing FILE (seqrec data); see `seqrec data --help`"),
        (["data", "no.csv"], ""),
        (
            ["doctor", "now"],
            "unexpected argument 'now' (seqrec doctor); see `seqrec doctor --help`",
        ),
    ],
)
def test_a_mistake_is_one_line(
    command: Command, tmp_path: Path, words: list[str], expected: str
) -> None:
    (tmp_path / "log.txt").write_text("a 1 2 3\nb 3 2 1\nc 2 3 1\n")
    (tmp_path / "two.txt").write_text("a 1 2 3\n")  # only one user could be evaluated
    before = tree(tmp_path)
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert err.startswith(f"seqrec: {expected}")
    assert "(" in err, "a message says where the mistake stands"
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "two.txt"]


def test_a_full_run_directory_is_not_touched(command: Command, trained: Path) -> None:
    before = tree(trained)
    status, _, err = command("train", "sasrec", "--data", SMALL, "--out", trained)
    assert status == 2
    assert f"seqrec resume {trained}" in err and "--overwrite" in err
    assert tree(trained) == before


def test_mistakes_of_recommend_leave_the_output_alone(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").write_text("kept")
    (tmp_path / "in.txt").write_bytes(b"alice 1 2\xff\n")
    status, out, err = command("recommend", trained, "--input", "in.txt", "--out", "out.jsonl")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


# Other endings ------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(directory: Path) -> None:
        raise error

    monkeypatch.setattr(api, "load", load)


def test_ctrl_c_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, Interrupted(Path("runs/my one")))
    status, out, err = command("evaluate", "x")
    assert (status, out) == (130, "")
    assert err == (
        "seqrec: stopped, state saved (runs/my one); go on with `seqrec resume 'runs/my one'`\n"
    )


def test_ctrl_c_elsewhere(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert command("evaluate", "x") == (130, "", "seqrec: stopped by Ctrl-C\n")


def test_a_leak_is_told_in_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, LeakError("better than possible"))
    assert command("evaluate", "x") == (1, "", "seqrec: better than possible\n")


def test_the_unexpected_is_one_line_and_a_file(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SEQREC_DEBUG", raising=False)
    failing(monkeypatch, RuntimeError("first\nsecond"))
    status, out, err = command("evaluate", "x")
    (file,) = tmp_path.glob("seqrec-*.txt")
    assert (status, out) == (1, "")
    assert err == (
        f"seqrec: RuntimeError: first second (traceback in {file}); SEQREC_DEBUG=1 shows it here\n"
    )
    assert "Traceback (most recent call last)" in file.read_text()


def test_debug_shows_the_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_DEBUG", "1")
    failing(monkeypatch, RuntimeError("broken"))
    status, _, err = command("evaluate", "x")
    assert status == 1
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("seqrec: RuntimeError: broken\n")


# As a process -------------------------------------------------------------------------------------


def test_ctrl_c_while_training_saves_and_resume_ends_alike(tmp_path: Path) -> None:
    """The same weights, byte for byte, as a run that was never stopped."""
    out, straight = tmp_path / "my run", tmp_path / "straight"
    long = [*QUICK[:-2], "training.patience=15", "--epochs", "15"]
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "seqrec.cli"]
    train = ["train", "sasrec", "--data", SMALL, *long, "--out"]
    with subprocess.Popen(
        [*command, *train, str(out)], env=environ, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        while not running.stderr.readline().startswith(b"epoch"):
            assert running.poll() is None, "it ended before its first epoch"
        running.send_signal(signal.SIGINT)
        last = running.stderr.read().decode().splitlines()
    assert running.returncode == 130
    assert last[-1] == f"seqrec: stopped, state saved ({out}); go on with `seqrec resume '{out}'`"
    assert not (out / "result.json").exists()
    assert cli.main(["resume", str(out)]) == 0
    assert cli.main([*train, str(straight)]) == 0
    assert tree(out)["model.safetensors"] == tree(straight)["model.safetensors"]


def doctor_into(stdout: IO[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seqrec.cli", "doctor"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=Path(cli.__file__).parents[1],
    )


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    script = (
        "import sys; from seqrec.cli import main; "
        "codes = [main(['train', '--help']),"
        "         main(['train', 'sasrc', '--data', 'x', '--out', 'y'])];"
        "heavy = {'torch', 'numpy', 'polars', 'triton'} & set(sys.modules); "
        "sys.exit(str((codes, heavy)) if codes != [0, 2] or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wait_policy_is_set_before_torch_loads() -> None:
    """Unless the user has chosen: long spinning costs four times the step where others work."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    script = f"import os, seqrec; print(*(os.environ.get(n, '-') for n in {names}))"
    free = {name: text for name, text in os.environ.items() if name not in names}
    for chosen, expected in (
        ({}, "passive 1000"),
        ({"OMP_WAIT_POLICY": "active"}, "active -"),
        ({"GOMP_SPINCOUNT": "7"}, "passive 7"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env={**free, **chosen}
        )
        assert done.stdout.strip() == expected


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = doctor_into(closed, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = doctor_into(full, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("seqrec: OSError: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1


def test_the_entry_point_is_this_command() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"seqrec": f"{cli.__name__}:{cli.main.__name__}"}
