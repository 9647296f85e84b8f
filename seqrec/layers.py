"""Values by dotted key, layer over layer, and what is wrong with one: the keys of a configuration.

A key is declared once, in a table (`seqrec.settings`, `seqrec.methods.settings`,
`seqrec.negatives.settings`).  One that the user sets in vain, because the method or another key
leaves it unread, is a mistake like a mistyped one.  What stands in the layers below the user's (a
method's own defaults, a preset, the configuration of an earlier run) gives way instead: it was
meant for the settings that the user has changed.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from seqrec.errors import UsageError
from seqrec.keys import Key, Rule, alternatives, nearest, unknown
from seqrec.methods import METHODS
from seqrec.methods.settings import MethodConfig
from seqrec.negatives.settings import NegativesConfig
from seqrec.settings import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    PresetConfig,
    TrainingConfig,
)

TABLES: dict[str, Any] = {
    "data": DataConfig,
    "method": MethodConfig,
    "encoder": EncoderConfig,
    "negatives": NegativesConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "preset": PresetConfig,
}


def _names(table: str) -> Iterator[tuple[str, str]]:
    """The keys of a table: bare and dotted."""
    for one in dataclasses.fields(TABLES[table]):
        yield one.name, f"{table}.{one.name}"


def _declared() -> Iterator[Key]:
    for table, cls in TABLES.items():
        kinds = typing.get_type_hints(cls)
        for one in dataclasses.fields(cls):
            yield Key(f"{table}.{one.name}", kinds[one.name], one.default, **one.metadata)


# every key by its dotted name, in the order of the tables
KEYS = {known.name: known for known in _declared()}
# what seqrec writes down itself, and nobody sets
RECORDED = {"data.sha256", "data.roles_sha256", "preset.name", "preset.data", "preset.sha256"}
_SETTABLE = tuple(table for table in TABLES if table != "preset")


def check_method(name: str, where: str = "METHOD") -> None:
    """Raise a UsageError naming the known methods where `name` is none."""
    if name not in METHODS:
        raise unknown("method", name, where, METHODS, "the methods")


def unread_by(name: str, values: Mapping[str, Any], method: str) -> tuple[str, Rule] | None:
    """The other key by which this one is not read, and what that would have to be; None: it is.

    Args:
        values: by dotted key; where there is none it is the default.
        method: what it does not read says nothing.
    """
    for other, rule in KEYS[name].when.items():
        known = KEYS[other]
        if known.read_by(method) and not rule.holds(values.get(other, known.default)):
            return other, rule
    return None


class Layers:
    """Values by dotted key, and where each came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.lower: set[str] = set()  # origins whose keys give way where they are not read

    def put(self, name: str, value: object, where: str, *, text: bool = False) -> None:
        """Check one value and lay it over what was there."""
        if name not in KEYS:
            raise _unknown_key(name, where, self.values.get("method.name", ""))
        self.values[name] = KEYS[name].read(value, where, text=text)
        self.origins[name] = where

    def put_asked(self, name: str, value: object, where: str, *, text: bool = False) -> None:
        """A value the user asks for: any key but those that seqrec records."""
        if name in RECORDED:
            raise UsageError(f"{name} cannot be set", where, "seqrec writes it; leave it out")
        self.put(name, value, where, text=text)

    def put_tables(self, tables: Mapping[str, Any], where: str) -> None:
        """A parsed TOML file."""
        for table, content in tables.items():
            if table not in _SETTABLE and table != "preset":
                if isinstance(content, dict):
                    raise unknown("table", table, where, _SETTABLE, "the tables")
                raise _unknown_key(table, where, "")
            if not isinstance(content, dict):
                raise UsageError(f"{table} is {content!r}", where, f"must be a table: [{table}]")
            for name, value in content.items():
                self.put(f"{table}.{name}", value, where)

    def check_trains(self, method: str) -> None:
        """Refuse what names another method than the command."""
        name, where = self.values["method.name"], self.origins["method.name"]
        check_method(name, where)
        if name != method:
            raise UsageError(f"method.name is {name!r}", where, f"the command trains {method}")

    def leave_to_others(self, method: str, where: str) -> None:
        """Take out what a run's own configuration says of other methods; what is unread gives way.

        Runs of earlier versions wrote such keys down as well. A file that names no method is
        nobody's but the user's, who would set them in vain.
        """
        if self.origins.get("method.name") != where:
            return
        self.check_trains(method)
        self.lower.add(where)
        others = [n for n in self.values if not KEYS[n].read_by(method)]
        for name in others:
            del self.values[name]

    def tables(self, where: str) -> dict[str, Any]:
        """The tables by name, once every value is known to be read; what gives way is left out."""
        for name in ("data.path", "method.name"):
            if name not in self.values:
                raise UsageError(f"{name} is missing", where, "name it")
        check_method(self.values["method.name"], self.origins["method.name"])
        self._check_read()
        return {
            table: cls(**{name: self.values[of] for name, of in _names(table) if of in self.values})
            for table, cls in TABLES.items()
        }

    def _check_read(self) -> None:
        """A key that the method or another key leaves unread would be set in vain."""
        method = self.values["method.name"]
        given_way = []
        for name in self.values:
            known = KEYS[name]
            if not known.read_by(method):
                raise UsageError(
                    f"{method} does not read {name}",
                    self.origins[name],
                    f"leave it out; {alternatives(known.methods, 'and')} "
                    f"read{'s' if len(known.methods) == 1 else ''} it",
                )
            found = unread_by(name, self.values, method)
            if found is None:
                continue
            if self.origins[name] not in self.lower:
                other, rule = found
                value = self.values.get(other, KEYS[other].default)
                raise UsageError(
                    f"{name} is not read while {other} is {value}",
                    self.origin(name, other),
                    f"leave it out, or make {other} {rule.says}",
                )
            given_way.append(name)
        for name in given_way:
            del self.values[name]

    def origin(self, *names: str) -> str:
        """Where the values of these keys come from."""
        return ", ".join(dict.fromkeys(self.origins[n] for n in names if n in self.origins))


def _unknown_key(name: str, where: str, method: str) -> UsageError:
    """Names the nearest key of the same table, or of any where there is no such table.

    Keys that the method does not read are not named.
    """
    table, _, leaf = name.rpartition(".")
    known: dict[str, str] = {}  # by the last part, the first table winning
    for dotted in KEYS:
        of, _, last = dotted.partition(".")
        if dotted in RECORDED or not KEYS[dotted].read_by(method):
            continue
        if of == table or table not in _SETTABLE:
            known.setdefault(last, dotted)
    close = nearest(leaf, known)
    if close:
        mend = f"did you mean {known[close]}?"
    elif table not in _SETTABLE:
        mend = "`seqrec train --help` lists the keys"
    elif known:
        mend = f"the keys of [{table}]: {', '.join(known)}"
    else:
        mend = f"{method} reads no key of [{table}]"
    return UsageError(f"unknown key {name!r}", where, mend)
