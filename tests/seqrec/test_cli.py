"""The command: every mistake is one line and exit 2, results are on stdout, nothing is lost."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

import seqrec
from seqrec import api, cli
from seqrec.config import Config, load_config, settable
from seqrec.errors import Interrupted, LeakError
from seqrec.methods import METHODS

SMALL = "synthetic:users=120,items=30,groups=3,seed=1"
QUICK = ["--set", "encoder.dim=8", "encoder.layers=1", "evaluation.ks=5,10", "--epochs", "2"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs `seqrec ...` in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "passive"))

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "sasrec", "--data", SMALL, "--out", str(directory), *QUICK]) == 0
    return directory


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Mistakes -----------------------------------------------------------------------------------------

TRAIN = ["train", "sasrec", "--data", SMALL, "--out", "out"]


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


# What the commands do -----------------------------------------------------------------------------


def test_help_and_version(command: Command) -> None:
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    for name in ("train", "resume", "evaluate", "recommend", "compare", "data", "doctor", "bench"):
        assert f"    {name}" in out
        status, text, err = command(name, "--help")
        assert (status, err) == (0, "")
        assert f"  seqrec {name}" in text, "an example"
        assert "exit status:" in text
    status, text, _ = command("train", "--help")
    for key in settable():
        assert f"\n  {key.name} " in text
    assert "\n  evaluation.ks              5,10,20 " in text
    status, out, err = command("--version")
    assert (status, err) == (0, "") and out.startswith("seqrec ")


def test_help_of_train_shows_what_can_be_typed_and_what_a_run_would_use(command: Command) -> None:
    _, text, _ = command("train", "--help")
    shown = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    for key in settable():
        head, _, _ = shown[key.name].partition(key.help)
        word = head.removeprefix(f"  {key.name}").strip()
        assert key.read(word, "--set", text=True) == key.default
        if key.kind is str and key.rule:
            assert key.allowed in shown[key.name]
    own = text.partition("what the methods' own defaults change:")[2].partition("presets:")[0]
    for method in METHODS:
        config = load_config(method, flags={"data.path": "-"})
        (named,) = re.findall(rf"^  {method} ((?:.*\n)(?: {{6}}.*\n)*)", own, re.MULTILINE)
        changed = {word for word in named.split() if word != "none"}
        assert load_config(method, sets=sorted(changed), flags={"data.path": "-"}) == config
        differing = {
            key.name
            for key in settable()
            if key.read_by(method) and _value(config, key.name) != key.default
        }
        assert {word.partition("=")[0] for word in changed} == differing


def _value(config: Config, name: str) -> object:
    table, _, leaf = name.partition(".")
    return getattr(getattr(config, table), leaf)


def test_dry_run_creates_nothing(command: Command, tmp_path: Path) -> None:
    status, out, _ = command(*TRAIN, "--dry-run", "--seed", "7")
    assert status == 0
    assert "seed = 7" in out
    assert list(tmp_path.iterdir()) == []


def test_train_prints_the_figures_beside_the_rulers(command: Command, tmp_path: Path) -> None:
    status, out, err = command(*TRAIN, *QUICK)
    assert status == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["test", "HR@5", "HR@10", "NDCG@5", "NDCG@10"]
    test = result["metrics"]["test"]
    assert rows[1] == ["sasrec", *(f"{test[name]:.4f}" for name in rows[0][1:])]
    labels = [line.partition("  ")[0] for line in out.splitlines()[:7]]
    assert labels[2:4] == ["item-to-item", "popularity"]
    assert labels[5:7] == ["best possible", "sasrec, of best possible"]
    assert "leave-one-out/exclude/mean" in out
    assert "seqrec recommend out --input" in out
    assert "epoch" in err


def test_resume_of_a_finished_run_says_so(command: Command, trained: Path) -> None:
    before = tree(trained)
    status, out, err = command("resume", trained)
    assert status == 0
    assert err == f"seqrec: {trained} is finished, nothing to resume\n"
    assert out.startswith("test ")
    assert tree(trained) == before


def test_evaluate_prints_another_protocol(command: Command, trained: Path) -> None:
    before = tree(trained)
    status, out, _ = command("evaluate", trained, "--seen", "include", "--ties", "pessimistic")
    assert status == 0
    assert "leave-one-out/include/pessimistic" in out
    assert [line for line in out.splitlines() if line.startswith(("valid ", "test "))]
    assert tree(trained) == before


def test_recommend_keeps_order_and_ids(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (trained / "items.txt").read_text().split()
    histories = f"zoë {items[0]} {items[1]} nowhere\nbob nowhere\nanna {items[2]}\n"
    (tmp_path / "in.txt").write_text(histories)
    status, out, err = command("recommend", trained, "--input", "in.txt", "--k", "3")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["user"] for row in rows] == ["zoë", "bob", "anna"]
    assert [row.get("fallback") for row in rows] == [None, "popularity", None]
    for row in rows:
        assert set(row) <= {"user", "items", "scores", "fallback"}
        assert len(row["items"]) == len(row["scores"]) == 3
        assert set(row["items"]) <= set(items)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert not {items[0], items[1]} & set(rows[0]["items"])
    assert "zoë" in out, "ids as they are, not escaped"
    assert "skipped 2 items" in err

    status, printed, _ = command(
        "recommend", trained, "--input", "in.txt", "--k", "3", "--out", "out.jsonl"
    )
    assert (status, printed) == (0, "")
    assert (tmp_path / "out.jsonl").read_text() == out

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(histories.encode())))
    status, piped, _ = command("recommend", trained, "--input", "-", "--k", "3")
    assert (status, piped) == (0, out)


def test_recommend_writes_to_a_device_and_behind_a_link(command: Command, trained: Path) -> None:
    """Neither is replaced by a file."""
    Path("in.txt").write_text("a i1\n")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert command("recommend", trained, "--input", "in.txt", "--out", "pipe")[0] == 0
        assert json.loads(os.read(reader, 10000))["user"] == "a"
        assert Path("pipe").is_fifo()
    finally:
        os.close(reader)
    Path("link").symlink_to("target.jsonl")
    assert command("recommend", trained, "--input", "in.txt", "--out", "link")[0] == 0
    assert Path("link").is_symlink() and json.loads(Path("target.jsonl").read_text())


def test_ids_are_utf_8_whatever_the_locale(trained: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "seqrec.cli", "recommend", str(trained), "--input", "-"],
        input="日本 i1\n".encode(),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["user"] == "日本"


def test_recommend_more_than_there_is_and_seen(command: Command, trained: Path) -> None:
    items = (trained / "items.txt").read_text().split()
    Path("in.txt").write_text(f"a {' '.join(items[:10])}\n")
    _, out, _ = command("recommend", trained, "--input", "in.txt", "--k", "1000")
    assert sorted(json.loads(out)["items"]) == sorted(items[10:])
    _, out, _ = command("recommend", trained, "--input", "in.txt", "--k", "1000", "--include-seen")
    assert sorted(json.loads(out)["items"]) == sorted(items)


def test_the_command_is_what_python_does(trained: Path, tmp_path: Path) -> None:
    sets = {"encoder.dim": 8, "encoder.layers": 1, "evaluation.ks": (5, 10)}
    run = seqrec.train("sasrec", SMALL, tmp_path / "run", sets=sets, epochs=2, progress=False)
    left, right = (folder / "model.safetensors" for folder in (trained, run.directory))
    assert left.read_bytes() == right.read_bytes()
    assert run.result["metrics"] == json.loads((trained / "result.json").read_text())["metrics"]


def test_data_says_what_is_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,time\n"
        + "".join(
            f"u{user},i{(user + event) % 7},{event}\n" for user in range(5) for event in range(4)
        )
    )
    status, out, err = command("data", "log.csv")
    assert (status, err) == (0, "")
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert (facts["users"], facts["items"], facts["interactions"]) == ("5", "7", "20")
    assert facts["format"].startswith("csv")
    assert "5 users evaluated" in out

    wanted = ["data.split=global-time", "data.min_item=3"]
    status, out, err = command("data", "log.csv", "--set", *wanted)
    assert (status, err) == (0, "")
    cut = dict(line.split(None, 1) for line in out.splitlines())
    assert cut["items"] != facts["items"] and cut["split"].startswith("global-time: ")
    mistakes = {
        "training.lr=1": "training.lr says nothing of a log (--set training.lr=1)",
        "data.split=global": "data.split",
        "data.mni_item=3": "did you mean data.min_item?",
    }
    for text, said in mistakes.items():
        status, out, err = command("data", "log.csv", "--set", text)
        assert (status, out, err.count("\n")) == (2, "", 1) and said in err


def test_doctor_names_every_operator(command: Command) -> None:
    import seqrec_kernels  # noqa: F401  (registers the operators)
    from seqrec_kernels.backend import report

    status, out, err = command("doctor")
    assert (status, err) == (0, "")
    assert report("cpu"), "operators are registered"
    for operator in report("cpu"):
        assert f"{operator} on cpu: " in out
    for title in ("versions", "devices", "kernels", "graphs", "compiled", "to mend"):
        assert f"\n{title}" in f"\n{out}"


def test_doctor_mends_a_library_that_does_not_load(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, and older than the package: the slow paths run, and that is not in order."""
    host = pytest.importorskip("seqrec_kernels._host")
    told = host.build_info() | {"parts": "host,cpu"}
    monkeypatch.setattr(host, "build_info", lambda: told)
    reason = "the C++ library is older than the package, without rank; build it anew"
    for missing in (reason, None):
        monkeypatch.setattr("seqrec_kernels.native.MISSING", missing)
        mend = command("doctor")[1].partition("\nto mend ")[2]
        assert ("older than the package, without rank: pip install" in mend) == bool(missing)


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
    """Unless the user has chosen: spinning threads cost four times the step on a shared machine."""
    script = "import os, seqrec; print(os.environ['OMP_WAIT_POLICY'])"
    free = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for environ, expected in ((free, "passive"), ({**free, "OMP_WAIT_POLICY": "active"}, "active")):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environ
        )
        assert done.stdout.split()[-1] == expected


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
