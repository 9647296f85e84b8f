"""Configurations of sasrec put together, and the one line said of those that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqrec.config import Config, load_config
from seqrec.errors import UsageError

DATA = {"data.path": "log.txt"}


def load(*sets: str, **more: Any) -> Config:
    return load_config("sasrec", sets=list(sets), flags={**DATA, **more.pop("flags", {})}, **more)


def message(*sets: str, **more: Any) -> str:
    with pytest.raises(UsageError) as error:
        load(*sets, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
