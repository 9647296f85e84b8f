"""The configuration of a run: what can be set, the defaults, and the layers it is made of.

    defaults < presets/<method>/default.toml < preset < --config FILE < --set key=value < flags

Every layer is checked as strictly as the next: an unknown table or key, a wrong type or a value out
of range is one :class:`~seqrec.errors.UsageError` that names the key, where it stands and what is
allowed.  A :class:`Config` writes itself as TOML and reads back equal.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrec.errors import UsageError
from seqrec.keys import (
    Key,
    alternatives,
    nearest,
    read_toml,
    read_toml_file,
    to_toml_value,
    unknown,
)
from seqrec.methods import METHODS
from seqrec.methods.settings import MethodConfig
from seqrec.negatives.settings import NegativesConfig
from seqrec.preset import default_file, preset_file
from seqrec.settings import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    PresetConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Config:
    """A checked configuration; change one with :func:`dataclasses.replace`."""

    data: DataConfig
    method: MethodConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    preset: PresetConfig = field(default_factory=PresetConfig)

    def to_toml(self) -> str:
        """This configuration as TOML, every key of the method; empty tables are left out."""
        tables = []
        read = self.read()
        for table in dataclasses.fields(self):
            values = {
                one.name: read[f"{table.name}.{one.name}"]
                for one in dataclasses.fields(getattr(self, table.name))
                if f"{table.name}.{one.name}" in read
            }
            if values and (table.name != "preset" or self.preset.name):
                lines = [f"{name} = {to_toml_value(value)}" for name, value in values.items()]
                tables.append("\n".join([f"[{table.name}]", *lines]) + "\n")
        return "\n".join(tables)

    def read(self) -> dict[str, Any]:
        """Values by dotted key, without the keys that neither the method nor its sampler reads."""
        return {
            f"{table}.{name}": value
            for table, values in dataclasses.asdict(self).items()
            for name, value in values.items()
            if _KEYS[f"{table}.{name}"].read_by(self.method.name, self.negatives.sampler)
        }

    @classmethod
    def from_toml(cls, text: str, where: str) -> Config:
        """Read back what :meth:`to_toml` wrote; as strict as any other layer.

        But for keys of other methods: runs of earlier versions wrote them down as well.

        Args:
            text: TOML.
            where: the file it came from, for messages.
        """
        layers = _Layers()
        layers.put_tables(read_toml(text, where), where)
        layers.leave_to_others(str(layers.values.get("method.name", "")), where)
        return layers.build(where)


def _declared() -> Iterator[Key]:
    for table, cls in typing.get_type_hints(Config).items():
        kinds = typing.get_type_hints(cls)
        for one in dataclasses.fields(cls):
            yield Key(f"{table}.{one.name}", kinds[one.name], one.default, **one.metadata)


# every key by its dotted name, in the order of the tables
_KEYS = {known.name: known for known in _declared()}
# what seqrec writes down itself, and nobody sets
_RECORDED = {"data.sha256", "data.roles_sha256", "preset.name", "preset.data", "preset.sha256"}
_TABLES = tuple(table.name for table in dataclasses.fields(Config) if table.name != "preset")


def settable() -> list[Key]:
    """The keys that ``--set`` and ``--config`` are for; data and method are the command's own."""
    own = _RECORDED | {"data.path", "method.name"}
    return [known for name, known in _KEYS.items() if name not in own]


def check_method(name: str, where: str = "METHOD") -> None:
    """Raise a UsageError naming the known methods where `name` is none."""
    if name not in METHODS:
        raise unknown("method", name, where, METHODS, "the methods")


def load_config(
    method: str,
    *,
    preset: str | Path | None = None,
    file: Path | None = None,
    sets: Iterable[str] | Mapping[str, Any] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Put a configuration together, the later layer winning.

    Args:
        method: a name in `seqrec.methods.METHODS`.
        preset: the full name of a preset of this method, or its file as
            :func:`~seqrec.preset.resolve_preset` gives it.
        file: a TOML file with any of the tables; a run's own ``config.toml`` will do (its data and
            preset are not taken over).
        sets: ``key=value`` texts, or dotted keys with Python values.
        flags: dotted keys with the values of the command's named flags; None: not given.

    Raises:
        UsageError: an unknown method, preset, table or key; a wrong type; a value out of range; no
            data; values that do not fit together.
    """
    check_method(method)
    layers = _Layers()
    layers.put("method.name", method, "METHOD")
    shared = default_file(method)
    if shared.exists():
        layers.put_tables(read_toml_file(shared), str(shared))
    if preset is not None:
        path = preset_file(method, preset) if isinstance(preset, str) else preset
        layers.put_tables(read_toml_file(path), f"preset {path.stem}")
        layers.put("preset.name", path.stem, "--preset")
    if file is not None:
        tables = {name: table for name, table in read_toml_file(file).items() if name != "preset"}
        if isinstance(tables.get("data"), dict):
            tables["data"] = {
                name: value
                for name, value in tables["data"].items()
                if name not in ("path", "sha256", "roles_sha256")
            }
        layers.put_tables(tables, str(file))
        layers.leave_to_others(method, str(file))
    if isinstance(sets, Mapping):
        for name, value in sets.items():
            layers.put_asked(name, value, f"--set {name}={value}")
    else:
        for text in sets:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"{text!r} is no key=value", "--set", "as --set training.lr=0.002")
            layers.put_asked(name.strip(), value, f"--set {text}", text=True)
    for name, value in (flags or {}).items():
        if value is not None:
            layers.put(name, value, f"{flag_of(name)} {value}")
    layers.check_trains(method)
    return layers.build("--config")


def load_data_config(path: str, sets: Iterable[str]) -> DataConfig:
    """The `[data]` table alone, for a look at a log before any method is chosen.

    Args:
        path: of the log.
        sets: ``data.key=value`` texts.

    Raises:
        UsageError: as :func:`load_config`, and for a key of another table.
    """
    texts = list(sets)
    for text in texts:
        name = text.partition("=")[0].strip()
        if name in _KEYS and not name.startswith("data."):
            raise UsageError(f"{name} says nothing of a log", f"--set {text}", "only [data] does")
    return load_config(next(iter(METHODS)), sets=texts, flags={"data.path": path}).data


def flag_of(name: str) -> str:
    """The command's named flag for a dotted key."""
    return "--data" if name == "data.path" else "--" + name.split(".")[-1].replace("_", "-")


class _Layers:
    """Values by dotted key, and where each came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, name: str, value: object, where: str, *, text: bool = False) -> None:
        """Check one value and lay it over what was there."""
        if name not in _KEYS:
            raise _unknown_key(name, where, self.values.get("method.name", ""))
        self.values[name] = _KEYS[name].read(value, where, text=text)
        self.origins[name] = where

    def put_asked(self, name: str, value: object, where: str, *, text: bool = False) -> None:
        """A value the user asks for: any key but those that seqrec records."""
        if name in _RECORDED:
            raise UsageError(f"{name} cannot be set", where, "seqrec writes it; leave it out")
        self.put(name, value, where, text=text)

    def put_tables(self, tables: Mapping[str, Any], where: str) -> None:
        """A parsed TOML file."""
        for table, content in tables.items():
            if table not in _TABLES and table != "preset":
                if isinstance(content, dict):
                    raise unknown("table", table, where, _TABLES, "the tables")
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
        """Take out what a run's own configuration says of other methods.

        Runs of earlier versions wrote such keys down as well. A file that names no method is
        nobody's but the user's, who would set them in vain.
        """
        if self.origins.get("method.name") != where:
            return
        self.check_trains(method)
        others = [n for n in self.values if not _KEYS[n].read_by(method)]
        for name in others:
            del self.values[name]

    def build(self, where: str) -> Config:
        """The configuration, once the values are known to fit together."""
        for name in ("data.path", "method.name"):
            if name not in self.values:
                raise UsageError(f"{name} is missing", where, "name it")
        check_method(self.values["method.name"], self.origins["method.name"])
        self._check_read()
        tables: dict[str, Any] = {}
        for name, cls in typing.get_type_hints(Config).items():
            values = {
                dotted.partition(".")[2]: value
                for dotted, value in self.values.items()
                if dotted.startswith(f"{name}.")
            }
            tables[name] = cls(**values)
        config = Config(**tables)
        self._check_together(config)
        return config

    def _check_read(self) -> None:
        """A key that neither the method nor its sampler reads would be set in vain.

        But a preset's keys give way where the user asks for another sampler.
        """
        method = self.values["method.name"]
        sampler = self.values.get("negatives.sampler", NegativesConfig.sampler)
        for name in list(self.values):
            known = _KEYS[name]
            if not known.read_by(method):
                reader, readers = method, known.methods
            elif known.read_by(method, sampler):
                continue
            elif self.origins[name].startswith("preset "):
                del self.values[name]
                continue
            else:
                reader, readers = f"the sampler {sampler}", known.samplers
            raise UsageError(
                f"{reader} does not read {name}",
                self.origins[name],
                f"leave it out; {alternatives(readers, 'and')} "
                f"read{'s' if len(readers) == 1 else ''} it",
            )

    def _check_together(self, config: Config) -> None:
        encoder, evaluation, method = config.encoder, config.evaluation, config.method
        if encoder.dim % encoder.heads:
            raise UsageError(
                f"encoder.dim {encoder.dim} is no multiple of encoder.heads {encoder.heads}",
                self._origin("encoder.dim", "encoder.heads"),
                "each head takes an equal share of the width",
            )
        if config.data.roles and config.data.split != "by-user":
            raise UsageError(
                f"data.roles is {config.data.roles!r}, but data.split is {config.data.split}",
                self._origin("data.roles", "data.split"),
                "only by-user has roles",
            )
        cutoff = int(evaluation.select.partition("@")[2])
        if cutoff not in evaluation.ks:
            raise UsageError(
                f"evaluation.select is {evaluation.select}, but {cutoff} is not in evaluation.ks "
                f"{to_toml_value(evaluation.ks)}",
                self._origin("evaluation.select", "evaluation.ks"),
                "change one of them",
            )

        if method.positive == "augmented" and not encoder.extra_rows:
            raise UsageError(
                "method.positive is augmented, but encoder.extra_rows is 0",
                self._origin("method.positive", "encoder.extra_rows"),
                "a masked item needs a row of the table: encoder.extra_rows = 1",
            )
        if method.calibration > 0 and method.loss != "bce":
            raise UsageError(
                f"method.calibration is {method.calibration}, but method.loss is {method.loss}",
                self._origin("method.calibration", "method.loss"),
                "only bce is calibrated",
            )
        negatives = config.negatives
        if not negatives.pool and (negatives.sampler != "r2ns" or not negatives.recall):
            raise UsageError(
                f"{negatives.sampler} has no candidates: negatives.pool is 0",
                self._origin("negatives.pool", "negatives.recall", "negatives.sampler"),
                "give it some",
            )
        if not method.mix_spread <= method.mix <= 1 - method.mix_spread:
            raise UsageError(
                f"method.mix {method.mix} -+ method.mix_spread {method.mix_spread} is not within "
                "0 and 1",
                self._origin("method.mix", "method.mix_spread"),
                "change one of them",
            )

    def _origin(self, *names: str) -> str:
        return ", ".join(dict.fromkeys(self.origins[n] for n in names if n in self.origins))


def _unknown_key(name: str, where: str, method: str) -> UsageError:
    """Names the nearest key of the same table, or of any where there is no such table.

    Keys that the method does not read are not named.
    """
    table, _, leaf = name.rpartition(".")
    known: dict[str, str] = {}  # by the last part, the first table winning
    for dotted in _KEYS:
        of, _, last = dotted.partition(".")
        if dotted in _RECORDED or not _KEYS[dotted].read_by(method):
            continue
        if of == table or table not in _TABLES:
            known.setdefault(last, dotted)
    close = nearest(leaf, known)
    if close:
        mend = f"did you mean {known[close]}?"
    elif table not in _TABLES:
        mend = "`seqrec train --help` lists the keys"
    elif known:
        mend = f"the keys of [{table}]: {', '.join(known)}"
    else:
        mend = f"{method} reads no key of [{table}]"
    return UsageError(f"unknown key {name!r}", where, mend)
