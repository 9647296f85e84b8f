"""The run directory: who may write to it, and what stands in it."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import shutil
from collections.abc import Iterator
from pathlib import Path

from seqrec.config import Config
from seqrec.errors import UsageError
from seqrec.files import write_atomic

CONFIG = "config.toml"
ITEMS = "items.txt"
LOG = "log.jsonl"
RESULT = "result.json"
INTERACTIONS = "interactions.parquet"  # only of a run on data that was no file
_LOCK = ".lock"
_FOLDERS = ("state", "ranks")
_FILES = (CONFIG, ITEMS, LOG, RESULT, INTERACTIONS, "model.safetensors", _LOCK)
_OURS = (*_FILES, *_FOLDERS, "state/step-*", "state/.step-*.tmp", "ranks/*.npz", "ranks/.*.tmp")


def check_new(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that a new run must not write to.

    Raises:
        UsageError: it is a file, or it is not empty and `overwrite` is off, or it holds files that
            are no run's.
    """
    where = f"--out {directory}"
    try:
        exists = directory.exists()
    except OSError as error:
        raise UsageError(f"cannot look there: {error.strerror}", where, "name another") from None
    if exists and not directory.is_dir():
        raise UsageError(f"{directory} is a file", where, "name a new directory")
    parent = next(path for path in directory.absolute().parents if path.exists())
    if not parent.is_dir():
        raise UsageError(f"{parent} is a file", where, "name a new directory")
    if not exists:
        return
    names = {path.name for path in directory.iterdir()}
    foreign = _foreign(directory)
    if foreign:
        raise UsageError(
            f"{directory} is not empty and holds files that are no run's, {foreign[0]!r} for one",
            where,
            f"name a new one; `seqrec resume {directory}` and --overwrite are for a run alone",
        )
    if names - {_LOCK, *(path.name for path in _torn(directory))} and not overwrite:
        resume = f"`seqrec resume {directory}` "
        resume += "goes on with it" if CONFIG in names else f"would need its {CONFIG}"
        raise UsageError(f"{directory} is not empty", where, f"--overwrite starts anew, {resume}")


def check_spares(directory: Path, data: Path) -> None:
    """Refuse to remove a run that holds the very data the next one is to be trained on.

    Raises:
        UsageError: `data` is a file within `directory`.
    """
    if data.resolve().is_relative_to(directory.resolve()):
        raise UsageError(
            f"the data {data} would go with the run that --overwrite removes",
            f"--out {directory}",
            "copy it to another place first, or name a new directory",
        )


def _foreign(directory: Path) -> list[str]:
    """What no run has written and `clear` must not remove; hidden files beside a run's may stay."""
    found = [path for path in directory.iterdir() if not path.name.startswith(".")]
    for name in _FOLDERS:
        found += (directory / name).iterdir() if (directory / name).is_dir() else []
    names = sorted(str(path.relative_to(directory)) for path in found)
    return [n for n in names if not any(fnmatch.fnmatchcase(n, ours) for ours in _OURS)]


def create(directory: Path) -> None:
    """Make the directory, and those above it, where they are missing.

    Raises:
        UsageError: the operating system refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the directory cannot be made: {error.strerror}", f"--out {directory}", "name another"
        ) from None


def clear(directory: Path) -> None:
    """Remove a run's files, the configuration first: without it the rest is no run."""
    for name in _FILES:
        if name != _LOCK:
            (directory / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(directory / name, ignore_errors=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against a second process; files a killed one was writing go.

    The operating system drops the lock with the process, however it ends: none is ever stale.

    Raises:
        UsageError: another process holds it.
    """
    with (directory / _LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                "another process is writing to this run", str(directory), "wait for it, or stop it"
            ) from error
        for path in _torn(directory):
            path.unlink()
        yield


def _torn(directory: Path) -> list[Path]:
    """Temporary files of a process that was killed while it wrote (`seqrec.files.replacing`)."""
    names = [directory / name for name in _FILES]
    names += [directory / "ranks" / f"{part}.npz" for part in ("valid", "test")]
    return [torn for path in names for torn in path.parent.glob(f".{path.name}.*.tmp")]


def read_config(directory: Path) -> Config:
    """The run's configuration.

    Raises:
        UsageError: there is no run here, or its configuration is damaged.
    """
    path = directory / CONFIG
    try:
        return Config.from_toml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UsageError(
            f"no run in {directory}: it has no {CONFIG}",
            str(directory),
            "name the directory that `seqrec train --out` was given",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", str(path), "restore it") from error


def write_items(directory: Path, items: list[str]) -> None:
    """External ids, one a line, in row order."""
    write_atomic(directory / ITEMS, "".join(f"{item}\n" for item in items))


def read_items(directory: Path) -> list[str]:
    """External ids in row order."""
    path = directory / ITEMS
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the item ids cannot be read: {error}",
            str(path),
            f"`seqrec resume {directory}` writes them again",
        ) from error
