"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, then rename it into place.

    A reader, also after a crash at any moment, finds the old content or the new, never a part.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving, it takes the place of `path` (a file)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def rename_directory(source: Path, target: Path) -> None:
    """Rename a finished directory into place, its files on disk first."""
    for file in source.iterdir():
        _sync(file)
    _sync(source)
    os.replace(source, target)
    _sync(target.parent)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
