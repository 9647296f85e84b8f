"""The configuration of a run: what can be set, the defaults, and the layers it is made of.

    defaults < presets/<method>/default.toml < preset < --config FILE < --set key=value < flags

Every layer is checked as strictly as the next (`seqrec.layers`): an unknown table or key, a wrong
type, a value out of range or a key set in vain is one :class:`~seqrec.errors.UsageError` that names
the key, where it stands and what is allowed.  A :class:`Config` writes itself as TOML, without the
keys that are not read, and reads back equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrec.errors import UsageError
from seqrec.keys import Key, read_toml, read_toml_file, to_toml_value
from seqrec.layers import KEYS, RECORDED, Layers, check_method, unread_by
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

# what says nothing about what was trained: where it ran, and how results are kept and computed
APART = {"training.seed", "training.device", "training.save_every", "evaluation.batch"}


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
        """Values by dotted key, without the keys that are not read under these values."""
        values = {
            f"{table}.{name}": value
            for table, of in dataclasses.asdict(self).items()
            for name, value in of.items()
        }
        method = self.method.name
        return {
            name: value
            for name, value in values.items()
            if KEYS[name].read_by(method) and not unread_by(name, values, method)
        }

    def changed(self) -> dict[str, Any] | None:
        """``{"training.epochs": 2}``: what its settings are where they are not its preset's.

        A preset says nothing of `APART`, the seed first of all. A file stands there by its name.
        None: there is no such preset, or none any more.
        """
        if not self.preset.name:
            return None
        try:
            known = load_config(
                self.method.name, preset=self.preset.name, flags={"data.path": self.data.path}
            ).read()
        except UsageError:
            return None
        own = self.read()
        asked = {key.name: own[key.name] for key in settable() if key.name in own}
        return {
            name: Path(value).name if name == "data.roles" else value
            for name, value in asked.items()
            if name not in APART and value != known.get(name)
        }

    @classmethod
    def from_toml(cls, text: str, where: str) -> Config:
        """Read back what :meth:`to_toml` wrote; as strict as any other layer.

        But for keys of other methods: runs of earlier versions wrote them down as well.

        Args:
            text: TOML.
            where: the file it came from, for messages.
        """
        layers = Layers()
        layers.put_tables(read_toml(text, where), where)
        layers.leave_to_others(str(layers.values.get("method.name", "")), where)
        return _fits(layers, where)


def settable() -> list[Key]:
    """The keys that ``--set`` and ``--config`` are for; data and method are the command's own."""
    own = RECORDED | {"data.path", "method.name"}
    return [known for name, known in KEYS.items() if name not in own]


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
    layers = Layers()
    layers.put("method.name", method, "METHOD")
    shared = default_file(method)
    if shared.exists():
        layers.put_tables(read_toml_file(shared), str(shared))
        layers.lower.add(str(shared))
    if preset is not None:
        path = preset_file(method, preset) if isinstance(preset, str) else preset
        layers.put_tables(read_toml_file(path), f"preset {path.stem}")
        layers.put("preset.name", path.stem, "--preset")
        layers.lower.add(f"preset {path.stem}")
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
    return _fits(layers, "--config")


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
        if name in KEYS and not name.startswith("data."):
            raise UsageError(f"{name} says nothing of a log", f"--set {text}", "only [data] does")
    return load_config(next(iter(METHODS)), sets=texts, flags={"data.path": path}).data


def flag_of(name: str) -> str:
    """The command's named flag for a dotted key."""
    return "--data" if name == "data.path" else "--" + name.split(".")[-1].replace("_", "-")


def _fits(layers: Layers, where: str) -> Config:
    """The configuration, once its values are known to fit together."""
    config = Config(**layers.tables(where))
    encoder, evaluation, method = config.encoder, config.evaluation, config.method
    if encoder.dim % encoder.heads:
        raise UsageError(
            f"encoder.dim {encoder.dim} is no multiple of encoder.heads {encoder.heads}",
            layers.origin("encoder.dim", "encoder.heads"),
            "each head takes an equal share of the width",
        )
    cutoff = int(evaluation.select.partition("@")[2])
    if cutoff not in evaluation.ks:
        raise UsageError(
            f"evaluation.select is {evaluation.select}, but {cutoff} is not in evaluation.ks "
            f"{to_toml_value(evaluation.ks)}",
            layers.origin("evaluation.select", "evaluation.ks"),
            "change one of them",
        )

    if method.positive == "augmented" and not encoder.extra_rows:
        raise UsageError(
            "method.positive is augmented, but encoder.extra_rows is 0",
            layers.origin("method.positive", "encoder.extra_rows"),
            "a masked item needs a row of the table: encoder.extra_rows = 1",
        )
    negatives = config.negatives
    if not negatives.pool and (negatives.sampler != "r2ns" or not negatives.recall):
        raise UsageError(
            f"{negatives.sampler} has no candidates: negatives.pool is 0",
            layers.origin("negatives.pool", "negatives.recall", "negatives.sampler"),
            "give it some",
        )
    if not method.mix_spread <= method.mix <= 1 - method.mix_spread:
        raise UsageError(
            f"method.mix {method.mix} -+ method.mix_spread {method.mix_spread} is not within "
            "0 and 1",
            layers.origin("method.mix", "method.mix_spread"),
            "change one of them",
        )
    return config
