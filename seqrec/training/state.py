"""The last step of a run on disk: two generations, each whole or not there.

    state/step-000001234/tensors.safetensors    weights and optimizer moments
                         best.safetensors       the best weights so far, model.safetensors' bytes
                         counters.json          where the run stands; sha256 of the two files

A generation is written under another name, flushed to disk and renamed; then the one before the
previous is removed.  `load` takes the newest whose digests agree, so a damaged one costs the steps
since the generation before it and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from seqrec.files import rename_directory, sha256_file

GENERATIONS = 2


@dataclass
class Counters:
    """Where a run stands.  With the weights and the moments this is the whole state.

    Args:
        epoch: epochs finished.
        step: training steps done, over all epochs.
        step_in_epoch: steps done in the epoch under way.
        best_epoch: epoch (from 1) of the best validation so far; 0 before the first.
        best_value: its value of the selection metric; -1 before the first.
        finished: training is over; what is left is the evaluation of the best weights.
        train_seconds: time spent in training steps so far.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    best_epoch: int = 0
    best_value: float = -1.0
    finished: bool = False
    train_seconds: float = 0.0


class StateStore:
    """The `state/` folder of a run.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "state"
        self.model = directory / "model.safetensors"

    def save(self, tensors: dict[str, Tensor], counters: Counters) -> None:
        """Write a generation; `model.safetensors` as it is now belongs to it."""
        name = f"step-{counters.step:09d}"
        if counters.finished:
            name += "-finished"
        temporary = self.folder / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        digests = {"tensors.safetensors": sha256_file(temporary / "tensors.safetensors")}
        if counters.best_epoch:
            _link(self.model, temporary / "best.safetensors")
            digests["best.safetensors"] = sha256_file(temporary / "best.safetensors")
        content = {"counters": asdict(counters), "sha256": digests}
        (temporary / "counters.json").write_text(json.dumps(content, indent=1) + "\n")
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)  # the same step, from before a fall-back
        rename_directory(temporary, target)
        for old in self._generations()[:-GENERATIONS]:
            shutil.rmtree(old)

    def load(self) -> tuple[dict[str, Tensor], Counters, list[str]] | None:
        """The newest sound generation, and a line for each damaged one passed over.

        `model.safetensors` is put back to what that generation held.  None: no sound generation;
        a run without one starts at step 0.
        """
        remarks: list[str] = []
        for folder in reversed(self._generations()):
            reason = self._damage(folder)
            if reason:
                remarks.append(f"state {folder.name} is damaged ({reason}); falling back")
                continue
            content = json.loads((folder / "counters.json").read_text())
            if (folder / "best.safetensors").exists():
                temporary = self.model.with_name(".model.safetensors.tmp")
                temporary.unlink(missing_ok=True)
                _link(folder / "best.safetensors", temporary)
                os.replace(temporary, self.model)
            tensors = load_file(folder / "tensors.safetensors")
            return tensors, Counters(**content["counters"]), remarks
        if remarks:
            remarks.append("no sound state is left; starting again at step 0")
            self.clear()
        return None if not remarks else ({}, Counters(), remarks)

    def clear(self) -> None:
        """Remove every generation."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _generations(self) -> list[Path]:
        """Finished generations, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    @staticmethod
    def _damage(folder: Path) -> str | None:
        """Why a generation cannot be used, or None."""
        try:
            content = json.loads((folder / "counters.json").read_text())
            digests = content["sha256"]
            known = {field.name for field in fields(Counters)}
            if set(content["counters"]) != known or "tensors.safetensors" not in digests:
                return "counters.json is not of this version"
            for name, digest in digests.items():
                if sha256_file(folder / name) != digest:
                    return f"{name} has other bytes than were written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return " ".join(str(error).split())
        return None


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is only ever replaced whole; a copy where links are refused."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
