"""How long the steps of a training take until it ranks well: ours, and in the published form.

    python -m benchmarks.time_to_quality RESULT.json

Both forms of a step compute the same loss and the same gradients, so they need the same epochs, but
for what they draw.  The epochs are those of a kept run of ours on Beauty, the milliseconds of both
steps those of RESULT.json (``benchmarks.run training_step``), the seconds their product: nothing is
trained here, least of all in the published form.  They are CPU time of one thread; clusters and
validation are in neither.  A setting that no run was kept of to the end stands below the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from seqrec.rundir import read_config
from seqrec.training.journal import read_journal

from .tables import RESULTS, source
from .training_step import SETTINGS, configured

# the kept run of each setting, below benchmarks/results
RUNS = {
    "sasrec_positions": "study/Beauty/sasrec/seed-0",
    "cl4srec": "study/Beauty/cl4srec/seed-0",
    "duorec": "study/Beauty/duorec/seed-0",
    "sasrec_prefixes": "sasrec-official-beauty/seed-0",
    "fenrec": "fenrec-official-beauty/seed-2024",
}
METRIC = "NDCG@10"
_TRAINING = ("training.batch", "training.lr", "training.clip_norm")
SHARE = 0.9  # of the least of the bests under one protocol: what is to be reached


class Run(NamedTuple):
    """A kept run.

    Attributes:
        protocol: of its validation.
        epochs: phase and validation NDCG@10 of each.
        steps: an epoch.
    """

    protocol: str
    epochs: list[tuple[str, float]]
    steps: int

    @property
    def best(self) -> float:
        return max(value for _, value in self.epochs)

    def until(self, reached: float) -> list[str]:
        """Phases of the epochs up to the first that reaches it."""
        first = next(i for i, (_, value) in enumerate(self.epochs) if value >= reached)
        return [phase for phase, _ in self.epochs[: first + 1]]


def kept(name: str, folder: Path) -> Run:
    """The run of a setting.

    Raises:
        ValueError: it was trained with another setting.
    """
    found = read_config(folder).read()
    for key, value in configured(name).read().items():
        matters = key.startswith(("method.", "encoder.")) or key in _TRAINING
        if matters and found.get(key, value) != value:
            raise ValueError(f"{folder}: {key} is {found[key]}, not {value}")
    epochs = [event for event in read_journal(folder / "log.jsonl") if event["event"] == "epoch"]
    result = json.loads((folder / "result.json").read_text())
    return Run(
        result["protocol"]["id"],
        [(event["phase"], event["valid"][METRIC]) for event in epochs],
        epochs[0]["step"],
    )


def table(found: dict[str, Any], results: Path = RESULTS) -> str:
    """A line a setting, under the protocol that its validation has."""
    runs = {name: kept(name, results / folder) for name, folder in RUNS.items()}
    lines = [
        f"| setting | validation {METRIC} to be reached (protocol) | epochs | CPU s of the steps: "
        "ours | dense | times as long |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        alike = [other.best for other in runs.values() if other.protocol == run.protocol]
        reached = SHARE * min(alike)
        cases = {
            case.rpartition(" ")[2]: entry
            for case, entry in found["cases"].items()
            if case.startswith(f"{name}_step Beauty ") and entry["correct"]
        }
        phases = run.until(reached)
        if not set(phases) <= cases.keys():
            continue
        if any(entry["steps_an_epoch"] != run.steps for entry in cases.values()):
            raise ValueError(f"{name}: an epoch of the kept run has {run.steps} steps")
        ours, dense = (
            sum(run.steps * cases[phase]["milliseconds"][side]["median"] / 1e3 for phase in phases)
            for side in ("ours", "dense")
        )
        cells = [name, f"{reached:.4f} ({run.protocol})", str(len(phases))]
        cells += [f"{ours:.0f}", f"{dense:.0f}", f"{dense / ours:.1f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    absent = ", ".join(sorted(SETTINGS.keys() - RUNS.keys()))
    told = "Epochs are those of kept runs of ours, seconds are epochs x steps x milliseconds of "
    told += f"both steps; not trained to the end in the timed setting: {absent}."
    return "\n".join([*lines, "", told, "", source(found)])


def main(arguments: list[str]) -> int:
    print(table(json.loads(Path(arguments[0]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
