"""Configuration: layers, every message, and the round trip through TOML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from seqrec import preset as presets
from seqrec.config import Config, load_config, settable
from seqrec.errors import UsageError
from seqrec.keys import alternatives
from seqrec.methods import METHODS

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


@pytest.fixture
def preset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty presets folder of sasrec, in place of the shipped one."""
    monkeypatch.setattr(presets, "PRESETS", tmp_path / "presets")
    folder = tmp_path / "presets" / "sasrec"
    folder.mkdir(parents=True)
    return folder


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


# Messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "training.epoch=1",
            "unknown key 'training.epoch' (--set training.epoch=1); did you mean training.epochs?",
        ),
        ("batch=1", "unknown key 'batch' (--set batch=1); did you mean training.batch?"),
        ("lr=.1", "unknown key 'lr' (--set lr=.1); did you mean training.lr?"),
        (
            "trainin.lr=.1",
            "unknown key 'trainin.lr' (--set trainin.lr=.1); did you mean training.lr?",
        ),
        ("zzz=1", "unknown key 'zzz' (--set zzz=1); `seqrec train --help` lists the keys"),
        (
            "negatives.k=1",
            "unknown key 'negatives.k' (--set negatives.k=1); sasrec reads no key of [negatives]",
        ),
        (
            "method.zzz=1",
            "unknown key 'method.zzz' (--set method.zzz=1); the keys of [method]: name, rows",
        ),
        ("epochs", "'epochs' is no key=value (--set); as --set training.lr=0.002"),
        (
            "training.epochs=many",
            "training.epochs is 'many' (--set training.epochs=many); "
            "must be a whole number, at least 1",
        ),
        (
            "training.epochs=1.5",
            "training.epochs is '1.5' (--set training.epochs=1.5); "
            "must be a whole number, at least 1",
        ),
        (
            "training.lr=nan",
            "training.lr is 'nan' (--set training.lr=nan); must be a number, above 0",
        ),
        (
            "training.lr=0",
            "training.lr is '0' (--set training.lr=0); must be a number, above 0",
        ),
        (
            "encoder.dropout=1",
            "encoder.dropout is '1' (--set encoder.dropout=1); "
            "must be a number, at least 0 and below 1",
        ),
        (
            "evaluation.seen=exlude",
            "evaluation.seen is 'exlude' (--set evaluation.seen=exlude); "
            "must be exclude, include or zero",
        ),
        (
            "evaluation.ks=10,5",
            "evaluation.ks is '10,5' (--set evaluation.ks=10,5); "
            "must be a list of whole numbers (5,10,20), at least one, positive and increasing",
        ),
        (
            "evaluation.select=ndcg@10",
            "evaluation.select is 'ndcg@10' (--set evaluation.select=ndcg@10); "
            "must be METRIC@K with METRIC one of HR, NDCG, MRR",
        ),
        (
            "evaluation.ks=5",
            "evaluation.select is NDCG@10, but 10 is not in evaluation.ks [5] "
            "(--set evaluation.ks=5); change one of them",
        ),
        (
            "encoder.dim=65",
            "encoder.dim 65 is no multiple of encoder.heads 2 (--set encoder.dim=65); "
            "each head takes an equal share of the width",
        ),
        (
            "method.clusters=9",
            "sasrec does not read method.clusters (--set method.clusters=9); "
            "leave it out; icsrec, fenrec, cl4srec and duorec read it",
        ),
        (
            "method.gamma=0.2",
            "sasrec does not read method.gamma (--set method.gamma=0.2); "
            "leave it out; fenrec, cl4srec and duorec read it",
        ),
        (
            "negatives.pool=9",
            "sasrec does not read negatives.pool (--set negatives.pool=9); "
            "leave it out; sasrec-sampled and r2ns read it",
        ),
        (
            "data.sha256=ab",
            "data.sha256 cannot be set (--set data.sha256=ab); seqrec writes it; leave it out",
        ),
        (
            "method.name=other",
            "unknown method 'other' (--set method.name=other); the methods: " + ", ".join(METHODS),
        ),
    ],
)
def test_messages_of_set(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "0,5", "-1", "5,5", "5;10", "5,ten"],
)
def test_cutoffs_that_make_no_sense(text: str) -> None:
    assert message(f"evaluation.ks={text}").startswith(f"evaluation.ks is '{text}'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.seed", -1),
        ("training.seed", 2**63),
        ("training.lr", True),
        ("training.lr", float("inf")),
        ("training.lr", "0.1"),
        ("training.batch", True),
        ("training.batch", 2.0),
        ("training.batch", 0),
        ("data.min_user", -1),
        ("data.repeats", None),
        ("data.path", "not \udcff UTF-8"),
        ("evaluation.ks", 5),
        ("evaluation.ks", [5, 10.0]),
        ("evaluation.select", "NDCG@010"),
        ("encoder.max_length", 0),
    ],
)
def test_values_from_python_that_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} is "):
        load_config("sasrec", sets={name: value}, flags=DATA)


def test_a_flag_is_named_as_it_was_typed() -> None:
    assert message(flags={"training.max_steps": -1}) == (
        "training.max_steps is -1 (--max-steps -1); must be a whole number, at least 0"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[trainig]\n", "unknown table 'trainig' ({file}); did you mean training?"),
        (
            "[zzz]\n",
            "unknown table 'zzz' ({file}); "
            "the tables: data, method, encoder, negatives, training, evaluation",
        ),
        ("epochs = 3\n", "unknown key 'epochs' ({file}); did you mean training.epochs?"),
        ("training = 3\n", "training is 3 ({file}); must be a table: [training]"),
        (
            "[training]\nlr = 'fast'\n",
            "training.lr is 'fast' ({file}); must be a number, above 0",
        ),
        (
            "[training.inner]\nlr = 1\n",
            "unknown key 'training.inner' ({file}); the keys of [training]: ",
        ),
        (
            "[method]\nname = 'bert'\n",
            "unknown method 'bert' ({file}); the methods: sasrec, icsrec, fenrec",
        ),
    ],
)
def test_messages_of_a_file(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path / "c.toml", text)
    assert message(file=file).startswith(expected.format(file=file))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing, folder = tmp_path / "none.toml", tmp_path
    assert message(file=missing) == (
        f"cannot read it: No such file or directory ({missing}); name a TOML file"
    )
    assert message(file=folder).startswith(f"cannot read it: Is a directory ({folder})")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[data]\npath = '\xe9'\n")
    assert message(file=latin) == f"not UTF-8 text ({latin}); name a TOML file"
    broken = write(tmp_path / "broken.toml", "[training]\nlr = \n")
    assert message(file=broken).startswith("not TOML: Invalid value (at line 2")


def test_a_run_of_an_earlier_version_may_name_a_key_of_another_method() -> None:
    config = load_config("sasrec", flags=DATA)
    text = config.to_toml()
    assert "warmup_epochs" not in text
    earlier = text.replace("[method]\n", "[method]\nwarmup_epochs = 0\n")
    assert Config.from_toml(earlier, "config.toml") == config


def test_the_configuration_of_an_earlier_run_is_a_config_file(tmp_path: Path) -> None:
    text = load_config("sasrec", flags=DATA).to_toml()
    earlier = write(
        tmp_path / "c.toml", text.replace("[method]\n", "[method]\nwarmup_epochs = 0\n")
    )
    assert load_config("sasrec", file=earlier, flags=DATA) == load_config("sasrec", flags=DATA)


@pytest.mark.parametrize("of", ["sasrec", "icsrec", "fenrec"])
def test_the_configuration_of_another_method_s_run_is_refused_by_its_name(
    tmp_path: Path, of: str
) -> None:
    file = write(tmp_path / "run.toml", load_config(of, flags=DATA).to_toml())
    for method in {"sasrec", "icsrec", "fenrec", "cl4srec"} - {of}:
        with pytest.raises(UsageError) as caught:
            load_config(method, file=file, flags=DATA)
        assert str(caught.value) == f"method.name is '{of}' ({file}); the command trains {method}"


def test_a_key_of_another_method_is_refused_wherever_it_stands(
    tmp_path: Path, preset_folder: Path
) -> None:
    file = write(tmp_path / "mine.toml", "[method]\nmix = 0.2\n")
    assert load_config("fenrec", file=file, flags=DATA).method.mix == 0.2
    with pytest.raises(UsageError, match=r"icsrec does not read method\.mix \(.*mine\.toml\)"):
        load_config("icsrec", file=file, flags=DATA)
    with pytest.raises(UsageError, match=r"fenrec does not read method\.rows .*sasrec, .*read it"):
        load_config("fenrec", sets={"method.rows": "prefixes"}, flags=DATA)


def test_mix_ratios_stay_between_0_and_1() -> None:
    def mixed(*sets: str) -> Config:
        return load_config("fenrec", sets=sets, flags=DATA)

    assert mixed("method.mix=0.5", "method.mix_spread=0.5").method.mix_spread == 0.5
    for sets in (["method.mix=0.3", "method.mix_spread=0.4"], ["method.mix_spread=0.7"]):
        with pytest.raises(UsageError, match=r"method\.mix .* not within 0 and 1 \(.*--set"):
            mixed(*sets)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_own_defaults_load_and_round_trip(method: str) -> None:
    config = load_config(method, flags=DATA)
    assert Config.from_toml(config.to_toml(), "x") == config


def test_an_unknown_method_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"^unknown method 'sasrc' \(METHOD\); did you mean sasr"):
        load_config("sasrc", flags=DATA)
    with pytest.raises(UsageError, match="the methods: " + ", ".join(METHODS)):
        load_config("xyz", flags=DATA)


def test_no_data() -> None:
    with pytest.raises(UsageError, match=r"^data.path is missing"):
        load_config("sasrec")


def test_the_names_are_those_the_layers_below_know() -> None:
    """Written twice, so that a mistyped one is refused before anything heavy is imported."""
    from seqrec.data.events import REPEATS
    from seqrec.data.sources import FORMATS
    from seqrec.data.split import SPLITS
    from seqrec.evaluation.ranking import TIE_RULES
    from seqrec.evaluation.rulers import SEEN_RULES

    for name, known in {
        "data.split": SPLITS,
        "data.format": ("auto", *FORMATS),
        "data.repeats": REPEATS,
        "evaluation.seen": SEEN_RULES,
        "evaluation.ties": TIE_RULES,
    }.items():
        assert message(f"{name}=?").endswith(f"must be {alternatives(known)}")


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
        assert written == key.read_by("sasrec"), key.name
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
