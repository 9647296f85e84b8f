"""Configuration: layers, the round trip through TOML, and presets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from configs import DATA, load, message, write

from seqrec import preset as presets
from seqrec.config import Config, load_config, settable
from seqrec.errors import UsageError
from seqrec.methods import METHODS

# Layers -------------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path: Path, preset_folder: Path) -> None:
    write(
        preset_folder / "default.toml",
        "[training]\nlr = 0.01\nbatch = 1\nepochs = 1\npatience = 1\nseed = 1\nclip_norm = 1\n",
    )
    write(
        preset_folder / "tuned-x.toml",
        "[training]\nbatch = 2\nepochs = 2\npatience = 2\nseed = 2\nclip_norm = 2\n",
    )
    file = write(
        tmp_path / "c.toml", "[training]\nepochs = 3\npatience = 3\nseed = 3\nclip_norm = 3\n"
    )
    config = load(
        "training.patience=4",
        "training.seed=4",
        "training.clip_norm=4",
        "training.clip_norm=5",
        preset="tuned-x",
        file=file,
        flags={"training.seed": 6, "training.epochs": None},
    )
    training = config.training
    assert (training.lr, training.batch, training.epochs) == (0.01, 2, 3)
    assert (training.patience, training.clip_norm, training.seed) == (4, 5.0, 6)
    assert training.weight_decay == 0.0
    assert config.preset.name == "tuned-x"


def test_a_method_has_its_own_defaults_without_a_preset(preset_folder: Path) -> None:
    write(preset_folder / "default.toml", "[encoder]\ndim = 96\n")
    assert load().encoder.dim == 96
    assert load().preset.name == ""


def test_sets_from_python_keep_their_types() -> None:
    config = load_config(
        "sasrec", sets={"evaluation.ks": [1, 10], "training.lr": 1, "encoder.dim": 32}, flags=DATA
    )
    assert config.evaluation.ks == (1, 10)
    assert isinstance(config.training.lr, float)
    with pytest.raises(UsageError, match=r"^encoder.dim is '32'"):
        load_config("sasrec", sets={"encoder.dim": "32"}, flags=DATA)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", (5,)), ("1,10", (1, 10)), ("[1, 10]", (1, 10)), ("1,10,", (1, 10))],
)
def test_lists_as_text(text: str, value: tuple[int, ...]) -> None:
    select = f"evaluation.select=HR@{value[-1]}"
    assert load(f"evaluation.ks={text}", select).evaluation.ks == value


def test_a_run_s_own_configuration_is_a_config_file(tmp_path: Path, preset_folder: Path) -> None:
    """Its data and preset are that run's; everything else is taken over."""
    write(preset_folder / "tuned-x.toml", '[preset]\ndata = "X"\n[encoder]\ndim = 32\n')
    first = load("training.lr=0.5", preset="tuned-x")
    first = dataclasses.replace(first, data=dataclasses.replace(first.data, sha256="ab"))
    file = write(tmp_path / "config.toml", first.to_toml())
    second = load_config("sasrec", file=file, flags={"data.path": "other.txt"})
    assert (second.training, second.encoder) == (first.training, first.encoder)
    assert (second.data.path, second.data.sha256, second.preset.name) == ("other.txt", "", "")


def test_what_lies_below_the_user_gives_way_to_another_choice(tmp_path: Path) -> None:
    """A preset, a method's own defaults and a run's own configuration; a file of the user's not."""
    plain = load_config(
        "fenrec", preset="official-beauty", sets=["method.contrast=info-nce"], flags=DATA
    )
    assert not {"method.noise", "method.margin"} & plain.read().keys()
    assert Config.from_toml(plain.to_toml(), "config.toml") == plain
    kept = write(tmp_path / "run.toml", load("data.split=by-user", "data.split_seed=3").to_toml())
    assert load(file=kept).data.split_seed == 3
    assert "data.split_seed" not in load("data.split=global-time", file=kept).read()
    mine = write(tmp_path / "mine.toml", '[data]\nsplit = "by-user"\nsplit_seed = 3\n')
    assert "data.split_seed is not read" in message("data.split=global-time", file=mine)


def test_the_configuration_of_an_earlier_version_may_hold_what_is_not_read() -> None:
    text = load().to_toml()
    assert "split_seed" not in text and "roles" not in text.partition("sha256")[0]
    earlier = text.replace("[data]\n", '[data]\nsplit_seed = 3\nroles = ""\n')
    assert Config.from_toml(earlier, "config.toml") == load()


# TOML ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        'quote " and \\ backslash',
        "tab\t newline\n return\r null\x00 delete\x7f escape\x1b",
        "naïve 日本語 🎬 \u2028 \ufeff",
        "'single' #comment [table] = ",
        "",
        "\\u0041 is no escape",
    ],
)
def test_texts_round_trip(path: str) -> None:
    config = load(flags={"data.path": path})
    assert Config.from_toml(config.to_toml(), "x") == config
    assert Config.from_toml(config.to_toml(), "x").data.path == path


@pytest.mark.parametrize("lr", [0.1, 1e-5, 1 / 3, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 3.0])
def test_floats_round_trip(lr: float) -> None:
    config = load_config("sasrec", sets={"training.lr": lr}, flags=DATA)
    again = Config.from_toml(config.to_toml(), "x").training.lr
    assert (again, type(again)) == (lr, float)


def test_everything_resolved_is_written(preset_folder: Path) -> None:
    """A later version's defaults do not change what an old run was."""
    write(preset_folder / "tuned-x.toml", '[preset]\ndata = "X"\nsha256 = "ab"\n')
    config = load("training.seed=9223372036854775807", preset="tuned-x")
    text = config.to_toml()
    for key in settable():
        written = f"\n{key.name.partition('.')[2]} = " in text.replace("[method]", "\n")
        assert written == (key.read_by("sasrec") and not key.when), key.name
    again = Config.from_toml(text, "config.toml")
    assert again == config
    assert (again.preset.name, again.preset.data, again.preset.sha256) == ("tuned-x", "X", "ab")
    assert again.to_toml() == text


def test_reading_back_is_strict() -> None:
    text = load().to_toml()
    with pytest.raises(UsageError, match=r"^training.lr is 0 \(run/config.toml\)"):
        Config.from_toml(text.replace("lr = 0.002", "lr = 0"), "run/config.toml")
    with pytest.raises(UsageError, match=r"^data.path is missing \(run/config.toml\)"):
        Config.from_toml("", "run/config.toml")


# Presets ------------------------------------------------------------------------------------------


def test_a_family_picks_by_the_data(preset_folder: Path) -> None:
    a, b = "a" * 64, "b" * 64
    for name, digest in (("tuned-a", a), ("tuned-b", b), ("official-b", b)):
        write(preset_folder / f"{name}.toml", f'[preset]\ndata = "D"\nsha256 = "{digest}"\n')
    assert presets.resolve_preset("sasrec", "tuned", b).stem == "tuned-b"
    assert presets.resolve_preset("sasrec", "official", b).stem == "official-b"
    assert presets.resolve_preset("sasrec", "tuned-a", b).stem == "tuned-a"
    assert presets.preset_data(preset_folder / "tuned-a.toml") == ("D", a)
    with pytest.raises(UsageError) as error:
        presets.resolve_preset("sasrec", "tuned", "c" * 64)
    assert str(error.value) == (
        "no tuned preset was made for this data (--preset tuned, sha256 cccccccccccc...); "
        "name one in full, or leave --preset out for our defaults; "
        "the presets of sasrec: official-b, tuned-a, tuned-b"
    )
    assert message(preset="tund-a") == "unknown preset 'tund-a' (--preset); did you mean tuned-a?"


def test_a_preset_may_know_the_first_sixteen_digits_of_its_data(preset_folder: Path) -> None:
    digest = "0123456789abcdef" + "f" * 48
    for name, known in (("tuned-none", ""), ("tuned-short", digest[:15])):
        write(preset_folder / f"{name}.toml", f'[preset]\ndata = "D"\nsha256 = "{known}"\n')
    with pytest.raises(UsageError, match="no tuned preset"):
        presets.resolve_preset("sasrec", "tuned", digest)
    write(preset_folder / "tuned-x.toml", f'[preset]\ndata = "D"\nsha256 = "{digest[:16]}"\n')
    assert presets.resolve_preset("sasrec", "tuned", digest).stem == "tuned-x"
    with pytest.raises(UsageError, match="no tuned preset"):
        presets.resolve_preset("sasrec", "tuned", "f" * 64)


def test_what_a_run_changes_of_its_preset(preset_folder: Path) -> None:
    own = '[preset]\ndata = "D"\n[encoder]\ndim = 32\n[training]\nseed = 9\nlr = 0.1\n'
    write(preset_folder / "tuned-x.toml", own)
    assert load().changed() is None  # there is none to change
    assert load("encoder.dim=32", "training.seed=1", preset="tuned-x").changed() == {}
    config = load("encoder.dim=64", preset="tuned-x", flags={"training.epochs": 2})
    assert config.changed() == {"encoder.dim": 64, "training.epochs": 2}
    again = Config.from_toml(config.to_toml(), "config.toml")
    assert again.changed() == config.changed()
    roles = load("data.split=by-user", "data.roles=/some/where/users.txt", preset="tuned-x")
    assert roles.changed() == {"data.split": "by-user", "data.roles": "users.txt"}
    (preset_folder / "tuned-x.toml").unlink()
    assert again.changed() is None  # nobody knows any more


def test_a_changed_preset_is_not_named_as_it_is() -> None:
    assert presets.named("tuned-x", None) == presets.named("tuned-x", {}) == "tuned-x"
    few = {"encoder.dim": 64, "training.epochs": 2}
    assert presets.named("tuned-x", few) == "tuned-x but encoder.dim=64 training.epochs=2"
    many = {**few, "training.lr": 0.5, "training.batch": 8}
    assert presets.named("tuned-x", many) == "tuned-x but 4 settings"


def test_default_is_no_preset(preset_folder: Path) -> None:
    write(preset_folder / "default.toml", "")
    assert presets.preset_names("sasrec") == []
    assert message(preset="default") == (
        "unknown preset 'default' (--preset); the presets of sasrec: none"
    )


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in METHODS for name in presets.preset_names(method)],
)
def test_shipped_presets_load_and_name_their_data(method: str, name: str) -> None:
    config = load_config(method, preset=name, flags=DATA)
    assert name.startswith(presets.FAMILIES)
    assert config.preset.data and len(config.preset.sha256) in (16, 64)
    path = presets.preset_file(method, name)
    assert presets.resolve_preset(method, name.partition("-")[0], config.preset.sha256) == path
