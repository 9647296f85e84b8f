"""One configuration key: how it is declared, read from text or TOML, checked, and written.

The tables in `seqrec.config` declare their keys with :func:`key`; everything that can be said about
a wrong value follows from that declaration, so a new key needs no further code.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrec.errors import UsageError

_NO_DEFAULT: Any = dataclasses.MISSING


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy beyond its type; `says` continues "must be a whole number, ..."."""

    says: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    return Rule(f"above {low}", lambda value: value > low)


def within(low: float, below: float) -> Rule:
    """The half-open range [low, below)."""
    return Rule(f"at least {low} and below {below}", lambda value: low <= value < below)


def one_of(*names: str) -> Rule:
    return Rule(alternatives(names), lambda value: value in names)


empty = Rule("empty", lambda value: not value)


def key(
    default: Any = _NO_DEFAULT,
    *,
    help: str,
    rule: Rule | None = None,
    methods: tuple[str, ...] = (),
    when: Mapping[str, Rule] | None = None,
) -> Any:
    """Declare a key of a configuration table: a dataclass field with its help and its rule.

    `methods` names those that read it, where not all do; `when` the choices it belongs to, other
    keys by dotted name and what they must be.  Setting a key that is not read is a mistake.  An
    amount is no choice: where a weight is 0, what is weighted may be set, as in a sweep.
    """
    metadata = {"help": help, "rule": rule, "methods": methods, "when": when or {}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A declared key: ``name`` is dotted (``training.lr``), `kind` its annotation.

    `methods` are those that read it, all of them where none is named; `when` says what else holds
    where it is read.
    """

    name: str
    kind: Any
    default: Any
    help: str
    rule: Rule | None
    methods: tuple[str, ...]
    when: Mapping[str, Rule]

    def read_by(self, method: str) -> bool:
        """Whether the key means anything to a method, under other settings at least."""
        return not self.methods or method in self.methods

    def read(self, value: object, where: str, *, text: bool = False) -> Any:
        """`value` as this key's type, or a UsageError naming key, value and what is allowed.

        Args:
            value: a Python or TOML value; with `text`, the characters behind ``--set key=``.
            where: where it stands, for the message.
        """
        try:
            typed = _typed(value, self.kind, text=text and isinstance(value, str))
        except ValueError:
            pass
        else:
            if self.rule is None or self.rule.holds(typed):
                return typed
        raise UsageError(f"{self.name} is {value!r}", where, f"must be {self.allowed}")

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.rule is None:
            return _KINDS[self.kind]
        if self.kind is str:
            return self.rule.says
        return f"{_KINDS[self.kind]}, {self.rule.says}"


_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "UTF-8 text",
    tuple[int, ...]: "a list of whole numbers (5,10,20)",
}


def _typed(value: object, kind: Any, *, text: bool) -> Any:
    """`value` as `kind`; ValueError where that would be a guess."""
    if kind is bool:
        if text and value in ("true", "false"):
            return value == "true"
        if isinstance(value, bool):
            return value
    elif kind is int:
        if text:
            return int(str(value))
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
    elif kind is float:
        number = float(str(value)) if text else value
        if isinstance(number, numbers.Real) and not isinstance(number, bool):
            if math.isfinite(number):
                return float(number)
    elif kind is str:
        if isinstance(value, str):
            value.encode()  # a file name that is not UTF-8 fits in no TOML file
            return value
    elif kind == tuple[int, ...]:
        if text:
            parts = str(value).strip().removeprefix("[").removesuffix("]").split(",")
            return tuple(int(part) for part in parts if part.strip())
        if isinstance(value, (list, tuple)):
            return tuple(_typed(part, int, text=False) for part in value)
    raise ValueError(value)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return close[0] if close else None


def alternatives(names: Iterable[str], word: str = "or") -> str:
    """``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def unknown(what: str, name: str, where: str, known: Iterable[str], of: str) -> UsageError:
    """The error for an unknown name: the nearest one, or the known ones where none is near.

    Args:
        of: what the known names are, as "the presets of sasrec".
    """
    names = list(known)
    close = nearest(name, names)
    mend = f"did you mean {close}?" if close else f"{of}: {', '.join(names) or 'none'}"
    return UsageError(f"unknown {what} {name!r}", where, mend)


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML; a mistake is a UsageError with its line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}", where, "mend that line") from None


def read_toml_file(path: Path) -> dict[str, Any]:
    """Parse a TOML file; unreadable, not UTF-8 or not TOML is a UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read it: {error.strerror}", str(path), "name a TOML file"
        ) from None
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", str(path), "name a TOML file") from None
    return read_toml(text, str(path))


def to_toml_value(value: Any) -> str:
    """A value as TOML, such that reading it gives the same value, bit for bit."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)  # the shortest text that reads back as the same number
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(to_toml_value(part) for part in value)}]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    # TOML allows no bare control character but the tab
    escaped = re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped)
    return f'"{escaped}"'
