"""Finding a preset: ``presets/<method>/<name>.toml``.

A preset is a configuration file whose ``[preset]`` table names the data set it is for and the
sha256 of that data set's file, so that ``--preset tuned`` can pick by the data.  Of a file that we
know only by what was published about it, it holds the hex digits that are known, at least 16.
``default.toml`` is no preset: it holds a method's own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqrec.errors import UsageError
from seqrec.keys import read_toml_file, unknown

PRESETS = Path(__file__).with_name("presets")

# the authors' setting, and ours
FAMILIES = ("official", "tuned")

# 64 bits of a digest: nobody meets another file with the same ones by chance
_FEWEST_DIGITS = 16


def default_file(method: str) -> Path:
    """Where a method's own defaults stand, if it has any."""
    return PRESETS / method / "default.toml"


def preset_names(method: str) -> list[str]:
    """The presets of a method, sorted."""
    files = (PRESETS / method).glob("*.toml")
    return sorted(file.stem for file in files if file.stem != "default")


def preset_file(method: str, name: str) -> Path:
    """The file of a preset named in full."""
    names = preset_names(method)
    if name not in names:
        raise unknown("preset", name, "--preset", names, f"the presets of {method}")
    return PRESETS / method / f"{name}.toml"


def named(name: str, changed: Mapping[str, Any] | None) -> str:
    """A run's preset, and what of it the run has changed where that is known: a few, or that."""
    if not changed:
        return name
    told = [f"{key}={value}" for key, value in changed.items()]
    return f"{name} but {' '.join(told)}" if len(told) <= 3 else f"{name} but {len(told)} settings"


def resolve_preset(method: str, name: str, sha256: str) -> Path:
    """The preset that is meant, for data with this sha256.

    Args:
        method: the method's name.
        name: a preset's full name, whatever the data; or ``official`` or ``tuned``, which picks the
            one made for this very file.
        sha256: hex digest of the data file.

    Raises:
        UsageError: no such preset; the message lists the names.
    """
    if name not in FAMILIES:
        return preset_file(method, name)
    for known in preset_names(method):
        path = preset_file(method, known)
        if known.startswith(f"{name}-") and made_for(preset_data(path)[1], sha256):
            return path
    names = ", ".join(preset_names(method)) or "none"
    raise UsageError(
        f"no {name} preset was made for this data",
        f"--preset {name}, sha256 {sha256[:12]}...",
        f"name one in full, or leave --preset out for our defaults; the presets of {method}: "
        f"{names}",
    )


def preset_data(path: Path) -> tuple[str, str]:
    """The data set a preset was made for: its name and its file's sha256."""
    head = read_toml_file(path).get("preset", {})
    return str(head.get("data", "")), str(head.get("sha256", ""))


def made_for(known: str, sha256: str) -> bool:
    """Whether a preset's sha256, whole or its first digits, is that of this data."""
    return len(known) >= _FEWEST_DIGITS and sha256.startswith(known)
