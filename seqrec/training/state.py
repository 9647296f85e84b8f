"""The last step of a run on disk: two generations, each whole or not there.

    state/step-000001234-epoch-00012/tensors.safetensors    weights and optimizer moments
                                     best.safetensors       the best weights so far
                                     counters.json          where the run stands; all their sha256

A generation is written under another name, flushed to disk and renamed; then the one before the
previous is removed.  `load` takes the newest whose digests agree, so a damaged one costs the steps
since the generation before it and nothing else.  No two files share their bytes on disk (they are
copies, not links), or one bad sector could take both generations.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from seqrec.files import rename_directory, sha256_file, write_atomic

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
        # the last step of an epoch has two states, before and after the validation
        name = f"step-{counters.step:09d}-epoch-{counters.epoch:05d}"
        for torn in self.folder.glob(".step-*.tmp"):  # a process was killed while it wrote
            shutil.rmtree(torn)
        temporary = self.folder / f".{name}.tmp"
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        digests = {"tensors.safetensors": sha256_file(temporary / "tensors.safetensors")}
        digests["counters"] = _digest(asdict(counters))
        if counters.best_epoch:
            shutil.copyfile(self.model, temporary / "best.safetensors")
            digests["best.safetensors"] = sha256_file(temporary / "best.safetensors")
        content = {"counters": asdict(counters), "sha256": digests}
        (temporary / "counters.json").write_text(json.dumps(content, indent=1) + "\n")
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)  # damaged, from before a fall-back
        rename_directory(temporary, target)
        generations = self._generations()
        newest = generations.index(target)
        # what comes after the newest was damaged and passed over
        for old in generations[: max(newest + 1 - GENERATIONS, 0)] + generations[newest + 1 :]:
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
                write_atomic(self.model, (folder / "best.safetensors").read_bytes())
            tensors = load_file(folder / "tensors.safetensors")
            return tensors, Counters(**content["counters"]), remarks
        if remarks:
            remarks.append("no sound state is left; starting again at step 0")
        return None if not remarks else ({}, Counters(), remarks)

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
            if digests.pop("counters") != _digest(content["counters"]):
                return "counters.json holds other counters than were written"
            for name, digest in digests.items():
                if sha256_file(folder / name) != digest:
                    return f"{name} has other bytes than were written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return " ".join(str(error).split())
        return None


def _digest(counters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(counters).encode()).hexdigest()
