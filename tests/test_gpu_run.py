"""The GPU kit on a machine without a GPU: its steps run, its tables fill, its failures count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_run.sh"
FAMILIES = (
    *("catalog_cross_entropy", "catalog_rank", "catalog_topk", "contrast"),
    *("jagged_attention", "max_index_recall", "rerank_negatives", "sampled"),
)


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu run")  # a space: paths are quoted
    done = run("bash", SCRIPT, "--dry", OUT=str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all that was run passed" in done.stdout
    return out


@pytest.mark.slow
def test_a_dry_run_takes_every_step_or_says_why_not(dry: Path) -> None:
    result = json.loads((dry / "result.json").read_text())
    verdicts = {step["name"]: (step["verdict"], step["words"]) for step in result["steps"]}
    assert list(verdicts) == [
        *("wheels", "environment", "plan", "tests", "small_shapes", "memcheck", "racecheck"),
        *("epochs", "suite", "ncu"),
    ]
    for name in ("environment", "plan", "small_shapes", "epochs", "suite"):
        assert verdicts[name][0] == "passed", verdicts[name]
    for name in ("wheels", "memcheck", "racecheck", "ncu"):
        assert verdicts[name][0] == "skipped" and verdicts[name][1].startswith("dry: ")
    if not torch.cuda.is_available():
        assert verdicts["tests"][0] == "skipped" and "skipped" in verdicts["tests"][1]
    assert result["passed"] is True and result["wrong"] == []
    # what the device tool brings back: eight files, none in a folder deep down
    assert len(list(dry.rglob("*"))) <= 8


@pytest.mark.slow
def test_a_dry_run_measures_every_family_in_both_dtypes(dry: Path) -> None:
    suite = json.loads((dry / "result.json").read_text())["suite"]
    assert suite == json.loads((dry / "suite.json").read_text())
    assert suite["not_run"] == [] and suite["machine_before"]["copy_gb_s"] > 0
    found = {(e["operator"], e["dtype"]) for e in suite["cases"].values()}
    assert found == {(f, t) for f in FAMILIES for t in ("float32", "bfloat16")}
    for entry in suite["cases"].values():
        assert entry["correct"] and entry["dispatch"] in ("native", "blocked")
        assert entry["ratio_to_ours"].keys() == entry["milliseconds"].keys() - {"ours"}
        assert entry["bound"]["milliseconds"] > 0 and entry["bound"]["share"] > 0
        # every implementation of ours is what runs, a rival, or left out with a reason
        for name in {"native", "triton", "blocked"} - {entry["dispatch"]}:
            rival = f"seqrec {name}"
            assert rival in entry["ratio_to_ours"] or entry["left_out"][rival]
    losses = [e for e in suite["cases"].values() if e["operator"] == "catalog_cross_entropy"]
    for entry in losses:
        assert "eager" in entry["ratio_to_ours"]
        for peer in ("cut-cross-entropy, exact", "Liger-Kernel"):
            assert entry["left_out"][peer] == "runs on a GPU only"


@pytest.mark.slow
def test_the_report_shows_what_the_json_holds(dry: Path) -> None:
    suite = json.loads((dry / "result.json").read_text())["suite"]
    lines = (dry / "report.md").read_text().splitlines()
    assert lines[0].startswith("# Dry run")
    text = "\n".join(lines)
    for needed in (suite["processor"], f"torch {torch.__version__}", suite["commit"] or "unknown"):
        assert needed in text
    for entry in suite["cases"].values():
        start = f"| {entry['shape']} | {entry['dtype']} | {entry['dispatch']} |"
        (row,) = [line for line in lines if line.startswith(start)]
        assert f"{entry['milliseconds']['ours']['median']:.3f}" in row
        for ratio in entry["ratio_to_ours"].values():
            assert f"{ratio:.2f}x" in row


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_real_run_is_refused(tmp_path: Path) -> None:
    done = run("bash", SCRIPT, OUT=str(tmp_path / "out"))
    assert done.returncode == 2 and "--dry runs without one" in done.stderr
    assert not (tmp_path / "out").exists()


FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  *get_device_name*) echo "Some GPU 9" ;;
  *benchmarks.report*) exec "{python}" "$@" ;;
  *"import xdist"*) exit 1 ;;
  *"-m pytest"*) echo "5 passed in 1.00s" ;;
  *setup.py*) echo "no compiler"; exit 1 ;;
  *) echo "python $*" ;;
esac
"""


@pytest.mark.parametrize("found", [0, 3])
def test_the_real_run_goes_through_with_every_tool_faked(tmp_path: Path, found: int) -> None:
    """Order, time boxes and exit status of the real run; what the tools do is theirs."""
    fakes = {
        "python": FAKE_PYTHON.format(python=sys.executable),
        "nvidia-smi": "#!/usr/bin/env bash\necho a driver\n",
        "ncu": '#!/usr/bin/env bash\necho "ncu $*"\n',
        "compute-sanitizer": '#!/usr/bin/env bash\necho "sanitizer $*"\n'
        f'echo "========= ERROR SUMMARY: {found} errors"\nexit {99 if found else 0}\n',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    done = run(
        *("bash", SCRIPT),
        OUT=str(out),
        PYTHON=str(tmp_path / "python"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.returncode == (1 if found else 0), done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["wrong"] == (["memcheck", "racecheck"] if found else [])
    verdicts = {step["name"]: step["verdict"] for step in result["steps"]}
    sanitized = "failed" if found else "passed"
    assert verdicts.pop("wheels") in ("passed", "skipped")
    assert verdicts == {
        "environment": "passed",
        "build": "failed",  # which stops nothing
        "tests": "passed",
        "small_shapes": "passed",
        "epochs": "passed",
        "memcheck": sanitized,
        "racecheck": sanitized,
        "suite": "passed",
        "ncu": "passed",
    }
    assert "a driver" in (out / "setup.log").read_text()
    assert "--tool memcheck --error-exitcode 99" in (out / "sanitizer.log").read_text()
    lines = [x for x in (out / "suite.log").read_text().splitlines() if x.startswith("python")]
    epochs, line = lines
    assert "captured_epochs --device cuda" in epochs
    assert "--device cuda" in line and 300 < int(line.split("--seconds ")[1].split()[0]) < 535
    assert "--clock-control none" in (out / "ncu.log").read_text()


def test_no_step_starts_when_the_budget_is_used_up(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(FAKE_PYTHON.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    out = tmp_path / "out"
    done = run("bash", SCRIPT, OUT=str(out), PYTHON=str(tmp_path / "python"), BUDGET="4")
    result = json.loads((out / "result.json").read_text())
    assert {step["verdict"] for step in result["steps"]} == {"skipped"}
    # tests that did not run prove nothing
    assert done.returncode == 1 and result["wrong"] == ["tests", "small_shapes"]


def test_an_argument_it_does_not_know_is_refused() -> None:
    done = run("bash", SCRIPT, "--fast")
    assert done.returncode == 2 and "--fast" in done.stderr


def test_a_wrong_operator_gets_no_speed_and_a_wrong_peer_no_place(tmp_path: Path) -> None:
    spoil = """
import sys, benchmarks.test_catalog_topk as t, benchmarks.test_catalog_cross_entropy as x
from benchmarks import run
right = t.catalog_topk
def reversed(*a, **k):
    found = right(*a, **k)
    return found._replace(ids=found.ids.flip(1))
t.catalog_topk = reversed
x.eager = lambda q, e, y: (q @ e.T).square().mean()
sys.exit(run.main(sys.argv[1:]))
"""
    out = tmp_path / "suite.json"
    options = ("--shapes", "tiny", "--rounds", "1", "--out", str(out))
    families = ("catalog_cross_entropy", "catalog_topk")
    done = run(sys.executable, "-c", spoil, *families, *options)
    assert done.returncode == 1, done.stderr
    loss, topk = json.loads(out.read_text())["cases"].values()
    assert topk["correct"] is False and "milliseconds" not in topk and "ours" in topk["reason"]
    assert loss["correct"] and "eager" not in loss["milliseconds"]
    assert "error" in loss["left_out"]["eager"]

    (tmp_path / "steps").write_text("suite\t1\t3\t\t0\t0\t\n")
    done = run(sys.executable, "-m", "benchmarks.report", tmp_path, tmp_path / "steps", "0")
    assert done.returncode == 1 and "catalog_topk" in done.stdout
    assert "**not timed**" in (tmp_path / "report.md").read_text()


SUMMARY = "========= ERROR SUMMARY: {} errors"
REFUSED = "========= Error: Device not supported. Please refer to the manual"
# step, its exit status, its log, the verdict, and whether the whole run fails by it on a GPU
STEPS: list[tuple[str, str, str, str, bool]] = [
    ("tests", "0", "170 passed, 8 skipped in 60.00s", "passed", False),
    ("tests", "1", "1 failed, 169 passed in 60.00s", "failed", True),
    ("tests", "0", "178 skipped, 3 deselected in 5.00s", "skipped", True),
    ("tests", "124", "....", "cut", True),
    ("small_shapes", "1", "WRONG catalog_rank\n1 wrong", "failed", True),
    ("build", "1", "error: command 'g++' failed", "failed", False),
    ("memcheck", "0", SUMMARY.format(0), "passed", False),
    ("memcheck", "99", f"Invalid __global__ read\n{SUMMARY.format(3)}", "failed", True),
    ("memcheck", "99", f"{REFUSED}\n{SUMMARY.format(1)}", "unusable", False),
    ("memcheck", "1", "no such file", "unusable", False),
    ("racecheck", "0", "========= RACECHECK SUMMARY: 0 hazards displayed", "passed", False),
    ("racecheck", "99", "========= RACECHECK SUMMARY: 2 hazards displayed", "failed", True),
    ("racecheck", "137", "ran lse", "cut", False),
    ("suite", "124", "catalog_rank", "cut", False),
    ("suite", "1", "36 cases, 1 wrong, 0 not run", "failed", True),
    ("ncu", "0", "==WARNING== No kernels were profiled.", "unusable", False),
    ("ncu", "1", "==ERROR== LibraryNotLoaded", "unusable", False),
    ("ncu", "-", "", "skipped", False),
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], int]]:
    """Each step of STEPS alone, as the report judges it, and the report's exit status."""
    found = []
    for name, status, log, _, _ in STEPS:
        out = tmp_path_factory.mktemp("step")
        # lines of other steps before and behind: they are not this step's
        text = f"Device not supported\n1 failed\n{log}\nDevice not supported\n1 failed\n"
        (out / "x.log").write_text(text)
        end = 2 + len(log.split("\n"))
        (out / "steps").write_text(f"{name}\t{status}\t7\t{out / 'x.log'}\t2\t{end}\t\n")
        done = run(sys.executable, "-m", "benchmarks.report", out, out / "steps", "0")
        (step,) = json.loads((out / "result.json").read_text())["steps"]
        found.append((step, done.returncode))
    return found


@pytest.mark.parametrize("index", range(len(STEPS)), ids=lambda i: f"{STEPS[i][0]}-{STEPS[i][3]}")
def test_a_step_is_judged_by_its_status_and_its_log(
    judged: list[tuple[dict[str, Any], int]], index: int
) -> None:
    name, _, _, verdict, fails = STEPS[index]
    step, status = judged[index]
    assert (step["name"], step["verdict"], status) == (name, verdict, int(fails))
