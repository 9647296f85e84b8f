"""`train`, `resume` and `load`: what the commands do, for Python."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from seqrec import rundir
from seqrec.config import Config, load_config
from seqrec.data.describe import remarks
from seqrec.data.export import write_parquet
from seqrec.data.log import InteractionLog, read_log
from seqrec.data.sources import read_bytes
from seqrec.data.split import Split
from seqrec.errors import Interrupted, LeakError, UsageError
from seqrec.files import write_atomic
from seqrec.methods import build
from seqrec.preset import FAMILIES, made_for, named, resolve_preset
from seqrec.provenance import commit, hardware, versions
from seqrec.run import Histories, Run, cut, load_log, read_data
from seqrec.training.finish import judged
from seqrec.training.plan import plan
from seqrec.training.progress import Progress
from seqrec.training.state import Counters
from seqrec.training.trainer import Trainer


def train(
    method: str,
    data: Any,
    out: str | Path,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    sets: Iterable[str] | Mapping[str, Any] = (),
    epochs: int | None = None,
    max_steps: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Run:
    """Train a method on a log, judge it against the full catalogue, and keep all of it in `out`.

    Command, configuration and data are checked before anything is created.

    Args:
        method: one of `seqrec.methods.METHODS`.
        data: path of a log, ``"synthetic[:users=..,items=..,groups=..,seed=..]"``, a polars or
            pandas frame with the columns of a CSV log, or ``{user: [items, oldest first]}``.
        out: run directory; new or empty.
        preset: a preset's name, or ``official`` / ``tuned`` for the one made for this file.
        config: a TOML file laid over defaults and preset.
        sets: ``key=value`` texts or ``{key: value}``, laid over that.
        epochs: as ``training.epochs``.
        max_steps: as ``training.max_steps``.
        device: as ``training.device``: "auto", "cpu" or "cuda".
        seed: as ``training.seed``.
        overwrite: remove the run that `out` holds.
        progress: False is silent; None draws a bar where stderr is a terminal.

    Returns:
        The finished run.

    Raises:
        UsageError: a mistake in arguments, configuration or data; nothing was created.
        Interrupted: Ctrl-C; the state is saved and `resume` goes on.
        LeakError: a synthetic log's metrics are better than is possible; `out` holds the result.
    """
    flags = _flags(epochs, max_steps, device, seed)
    with _prepared(method, data, out, preset, config, sets, flags, overwrite) as ready:
        directory = Path(out)
        rundir.create(directory)
        with rundir.locked(directory):
            rundir.check_new(directory, overwrite)  # another process may have been faster
            rundir.clear(directory)
            chosen = ready.config
            if ready.temporary is not None:
                kept = directory / rundir.INTERACTIONS
                shutil.copyfile(ready.temporary, kept)
                path = str(kept.absolute())
                chosen = dataclasses.replace(
                    chosen, data=dataclasses.replace(chosen.data, path=path)
                )
            write_atomic(directory / rundir.CONFIG, chosen.to_toml())
            return _run(directory, chosen, ready.log, ready.split, progress, resumed=False)


def dry_run(
    method: str,
    data: Any,
    out: str | Path,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    sets: Iterable[str] | Mapping[str, Any] = (),
    epochs: int | None = None,
    max_steps: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> str:
    """What `train` with these arguments would do, as text; creates nothing.

    Raises:
        UsageError: as `train`.
    """
    flags = _flags(epochs, max_steps, device, seed)
    with _prepared(method, data, out, preset, config, sets, flags, overwrite) as ready:
        return plan(ready.config, ready.log, ready.split, _device(ready.config))


def resume(out: str | Path, *, progress: bool | None = None) -> Run:
    """Go on with an interrupted run; a finished one is returned as it is.

    Raises:
        UsageError: `out` holds no run, or its data has changed.
        Interrupted: Ctrl-C; the state is saved.
    """
    directory = Path(out)
    config = rundir.read_config(directory)
    with rundir.locked(directory):
        if (directory / rundir.RESULT).exists():
            return Run(directory)
        log = load_log(config, directory)
        split = cut(log, config.data)
        return _run(directory, config, log, split, progress, resumed=True)


def load(directory: str | Path) -> Run:
    """A run by its directory, to look at, evaluate again or ask for recommendations.

    Raises:
        UsageError: there is no run.
    """
    return Run(Path(directory))


def recommend(
    run: Run | str | Path, histories: Histories, k: int = 10, *, include_seen: bool = False
) -> dict[str, list[tuple[str, float]]]:
    """`Run.recommend` of a run or of the run in a directory."""
    chosen = run if isinstance(run, Run) else load(run)
    return chosen.recommend(histories, k, include_seen=include_seen)


@dataclasses.dataclass(frozen=True)
class _Ready:
    """Checked arguments: all that `train` needs before it creates anything."""

    config: Config
    log: InteractionLog
    split: Split
    temporary: Path | None


@contextlib.contextmanager
def _prepared(
    method: str,
    data: Any,
    out: str | Path,
    preset: str | None,
    config: str | Path | None,
    sets: Iterable[str] | Mapping[str, Any],
    flags: dict[str, Any],
    overwrite: bool,
) -> Iterator[_Ready]:
    """Check everything; data that is no file becomes one, so that `resume` finds it again."""
    with contextlib.ExitStack() as stack:
        temporary = None
        if not isinstance(data, (str, os.PathLike)):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="seqrec-"))
            temporary = Path(folder) / rundir.INTERACTIONS
            write_parquet(read_log(data), temporary)
        path = str(temporary or data)
        if not _is_synthetic(path):
            path = str(Path(path).absolute())
        resolved = load_config(
            method,
            preset=None if preset is None else _preset_file(method, preset, path),
            file=None if config is None else Path(config),
            sets=sets,
            flags={**flags, "data.path": path},
        )
        _device(resolved)
        rundir.check_new(Path(out), overwrite)
        log = read_data(resolved.data)
        if overwrite and not _is_synthetic(path):
            rundir.check_spares(Path(out), Path(path))
        asked = resolved.data
        roles = str(Path(asked.roles).absolute()) if asked.roles else ""
        kept = dataclasses.replace(asked, sha256=log.sha256, roles=roles)
        split = cut(log, kept)
        kept = dataclasses.replace(kept, roles_sha256=str(split.drawn.get("roles_sha256", "")))
        if split.train.lengths().max() < 2:
            raise UsageError(
                "nothing to train on: no user has two training events",
                log.file,
                "a log with longer histories is needed",
            )
        yield _Ready(dataclasses.replace(resolved, data=kept), log, split, temporary)


def _run(
    directory: Path,
    config: Config,
    log: InteractionLog,
    split: Split,
    progress: bool | None,
    resumed: bool,
) -> Run:
    device = _device(config)
    with _resumable(directory), contextlib.closing(Progress(progress)) as shown:
        for remark in (*_preset_remark(config), *remarks(log, split)):
            shown.line(f"seqrec: {remark}")
        rundir.write_items(directory, log.items)
        trainer = Trainer(directory, config, split, build(config, log.n_items), device, shown)
        if resumed:
            trainer.restore()
        counters = trainer.counters
        trainer.journal.write(
            "resume" if resumed else "start",
            epoch=counters.epoch,
            step=counters.step,
            commit=commit(),
            versions=versions(),
            hardware=hardware(device),
        )
        trainer.run()
        shown.close()
        for remark in _warmup_remark(config, trainer.counters):
            shown.line(f"seqrec: {remark}")
        result = judged(directory, config, log, split, trainer.counters, device)
        trainer.journal.write(
            "end",
            epoch=trainer.counters.epoch,
            step=trainer.counters.step,
            best_epoch=result["best_epoch"],
            test=result["metrics"]["test"],
        )
        write_atomic(directory / rundir.RESULT, json.dumps(result, indent=1) + "\n")
    if result.get("leak"):
        raise LeakError(result["leak"])
    return Run(directory)


@contextlib.contextmanager
def _resumable(directory: Path) -> Iterator[None]:
    """Ctrl-C outside the training loop, or a second one inside, names the way back as well."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(directory) from None


def _preset_file(method: str, name: str, path: str) -> Path:
    """The preset's file; ``official`` and ``tuned`` go by the bytes of the data."""
    if name not in FAMILIES or _is_synthetic(path):
        return resolve_preset(method, name, "")
    return resolve_preset(method, name, hashlib.sha256(read_bytes(path)).hexdigest())


def _preset_remark(config: Config) -> list[str]:
    """Which preset it is, what of it was changed, and whether it was made for this data."""
    preset = config.preset
    if not preset.name:
        return []
    other = "" if made_for(preset.sha256, config.data.sha256) else ", made for other data than this"
    return [f"preset {named(preset.name, config.changed())}{other}"]


def _warmup_remark(config: Config, counters: Counters) -> list[str]:
    """Whether the weights that are kept have not seen the method's own loss."""
    method, warmup = config.method.name, config.method.warmup_epochs
    if counters.best_epoch > warmup:
        return []
    if counters.epoch > warmup:
        return [
            f"no epoch of {method}'s own loss was better than warm-up epoch {counters.best_epoch}"
        ]
    return [
        f"training ended in epoch {counters.epoch} of a warm-up of {warmup}: {method}'s own loss "
        "never began (training.epochs, training.patience, method.warmup_epochs)"
    ]


def _is_synthetic(path: str) -> bool:
    return path.partition(":")[0] == "synthetic"


def _flags(
    epochs: int | None, max_steps: int | None, device: str | None, seed: int | None
) -> dict[str, Any]:
    return {
        "training.epochs": epochs,
        "training.max_steps": max_steps,
        "training.device": device,
        "training.seed": seed,
    }


def _device(config: Config) -> torch.device:
    wanted = config.training.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no CUDA device", "training.device = cuda", "`seqrec doctor` says why"
        )
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
