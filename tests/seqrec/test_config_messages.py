"""Configurations that cannot be: every mistake is one line naming key, place and mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from configs import DATA, load, message, write

from seqrec.config import Config, load_config, settable
from seqrec.errors import UsageError
from seqrec.keys import alternatives
from seqrec.methods import METHODS


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
            "data.split_seed=3",
            "data.split_seed is not read while data.split is leave-one-out "
            "(--set data.split_seed=3); leave it out, or make data.split by-user",
        ),
        (
            "data.roles=users.txt",
            "data.roles is not read while data.split is leave-one-out "
            "(--set data.roles=users.txt); leave it out, or make data.split by-user",
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
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "mine.toml", "[method]\nmix = 0.2\n")
    assert load_config("fenrec", file=file, flags=DATA).method.mix == 0.2
    with pytest.raises(UsageError, match=r"icsrec does not read method\.mix \(.*mine\.toml\)"):
        load_config("icsrec", file=file, flags=DATA)
    with pytest.raises(UsageError, match=r"method\.mix is not read while method\.contrast is info"):
        load_config("cl4srec", file=file, flags=DATA)
    with pytest.raises(UsageError, match=r"fenrec does not read method\.rows .*sasrec, .*read it"):
        load_config("fenrec", sets={"method.rows": "prefixes"}, flags=DATA)


def test_a_seed_is_refused_where_a_file_has_the_roles() -> None:
    assert load("data.split=by-user", "data.split_seed=3").data.split_seed == 3
    assert message("data.split=by-user", "data.split_seed=3", "data.roles=users.txt") == (
        "data.split_seed is not read while data.roles is users.txt (--set data.split_seed=3, "
        "--set data.roles=users.txt); leave it out, or make data.roles empty"
    )


@pytest.mark.parametrize(
    ("method", "text", "other"),
    [
        ("cl4srec", "method.noise=1", "method.contrast"),
        ("icsrec", "method.crop=0.5", "method.positive"),
        ("sasrec-sampled", "negatives.power=0.5", "negatives.sampler"),
    ],
)
def test_a_key_of_another_choice_is_refused(method: str, text: str, other: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(method, sets=[text], flags=DATA)
    said = str(caught.value)
    assert said.startswith(f"{text.partition('=')[0]} is not read while {other} is ")
    mend = said.partition(f"leave it out, or make {other} ")[2]
    load_config(method, sets=[text, f"{other}={mend}", "encoder.extra_rows=1"], flags=DATA)


def test_every_choice_that_a_key_belongs_to_is_a_key() -> None:
    known = {key.name: key for key in settable()}
    belonging = [key for key in known.values() if key.when]
    assert belonging
    for key in belonging:
        for other, rule in key.when.items():
            assert set(key.methods) <= set(known[other].methods) or not known[other].methods
            assert known[other].kind is str and rule.says


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
