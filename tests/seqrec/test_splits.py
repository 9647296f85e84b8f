"""Splits by user and by time: against plain Python, on a log with tied times, and in a run."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from little import log_dict, write_lines

import seqrec
from seqrec import UsageError
from seqrec.config import load_config
from seqrec.data import InteractionLog, describe, read_log, split_log
from seqrec.data.philox import random_order
from seqrec.data.split import SPLITS, Split, Targets


def timed(seed: int, users: int = 40, moments: int = 30) -> InteractionLog:
    """Random events with many tied times, inside users and between them."""
    draw = random.Random(seed)
    rows = [
        {"user": f"u{u}", "item": draw.choice("abcdefgh"), "time": draw.randrange(moments)}
        for u in range(users)
        for _ in range(draw.randint(1, 9))
    ]
    draw.shuffle(rows)
    return read_log(pl.DataFrame(rows))


def cells(targets: Targets) -> dict[int, tuple[list[int], int]]:
    """user row -> (input, target)."""
    rows = [targets.inputs.row(b).tolist() for b in range(len(targets.users))]
    return dict(
        zip(targets.users.tolist(), zip(rows, targets.items.tolist(), strict=True), strict=True)
    )


def events_of(log: InteractionLog, u: int) -> list[tuple[float, int]]:
    assert log.times is not None
    part = slice(log.offsets[u], log.offsets[u + 1])
    return list(zip(log.times[part].tolist(), log.item_rows[part].tolist(), strict=True))


# by time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_global_time_against_plain_python(seed: int) -> None:
    log = timed(seed)
    split = split_log(log, "global-time")
    t_test = np.quantile(log.times, 0.9)
    t_valid = np.quantile([t for t in log.times if t < t_test], 0.9)
    assert t_valid < t_test
    train, valid, test = [], {}, {}
    for u in range(log.n_users):
        events = events_of(log, u)
        train.append([item for t, item in events if t < t_valid])
        for found, begin, end in ((valid, t_valid, t_test), (test, t_test, np.inf)):
            inside = [k for k, (t, _) in enumerate(events) if begin <= t < end]
            if inside and inside[-1] > 0:
                items = [item for _, item in events]
                found[u] = (items[: inside[-1]], items[inside[-1]])
    assert [split.train.row(u).tolist() for u in range(log.n_users)] == train
    assert cells(split.valid) == valid and cells(split.test) == test
    assert len(valid) > 3 and len(test) > 3
    assert split.users_not_evaluated == log.n_users - len(test)


def test_nothing_that_trains_is_newer_than_any_target() -> None:
    log = timed(1, users=300, moments=10_000)
    split = split_log(log, "global-time")
    when = {(u, k): t for u in range(log.n_users) for k, (t, _) in enumerate(events_of(log, u))}
    trained = [when[u, k] for u in range(log.n_users) for k in range(len(split.train.row(u)))]
    for targets in (split.valid, split.test):
        places = zip(targets.users.tolist(), targets.inputs.lengths().tolist(), strict=True)
        assert max(trained) < min(when[place] for place in places)


def test_global_time_without_times_or_without_a_future_is_one_line() -> None:
    with pytest.raises(UsageError, match="needs the events' times") as caught:
        split_log(read_log(log_dict()), "global-time")
    assert "\n" not in str(caught.value)
    rows = [{"user": f"u{u}", "item": i, "time": 7} for u in range(4) for i in "xyz"]
    with pytest.raises(UsageError, match="0 of 4 users can be evaluated"):
        split_log(read_log(pl.DataFrame(rows)), "global-time")  # all at one moment


# by user ------------------------------------------------------------------------------------------


def test_by_user_holds_out_whole_users() -> None:
    source = {f"u{u}": list("abcdefgh"[: 1 + u % 6]) for u in range(600)}
    log = read_log(source)
    split = split_log(log, "by-user", 5)
    train, valid, test = split.train, cells(split.valid), cells(split.test)
    dealt = [u for u in range(600) if u % 6 >= 2]
    assert (len(valid), len(test)) == (len(dealt) * 2 // 10, len(dealt) - len(dealt) * 9 // 10)
    assert not set(valid) & set(test)
    for u in range(600):
        events = log.item_rows[log.offsets[u] : log.offsets[u + 1]].tolist()
        held = valid.get(u) or test.get(u)
        assert train.row(u).tolist() == ([] if held else events)
        assert held in (None, (events[:-1], events[-1]))
        assert u in dealt or held is None  # one or two events: they train
    assert split.remark == "480 train, 80 validate; 200 with fewer than 3 events only train"


def test_the_users_of_by_user_follow_its_own_seed() -> None:
    log = read_log({f"u{u}": list("abc") for u in range(1000)})
    drawn = [set(split_log(log, "by-user", seed).test.users.tolist()) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and 2 < len(drawn[0] & drawn[2]) < 30  # 10 expected
    # sorted by a number that a user keeps when others go
    order = random_order(3, np.arange(1000))
    odd = random_order(3, np.arange(1, 1000, 2)) * 2 + 1
    assert order[order % 2 == 1].tolist() == odd.tolist()


def test_roles_from_a_file(tmp_path: Path) -> None:
    log = read_log({name: list("abcd") for name in "tuvwxyz"} | {"few": list("ab")})
    path = tmp_path / "roles"
    lines = ["z test", "t train", "few test", "u valid", "w test", "v valid", "x train", "y train"]
    path.write_text("\n".join(lines) + "\n\n")
    split = split_log(log, "by-user", roles=str(path))
    named = [[log.users[u] for u in targets.users] for targets in (split.valid, split.test)]
    assert named == [["u", "v"], ["w", "z"]]  # two events are too few to be tested on
    trains = [log.users[u] for u in range(log.n_users) if len(split.train.row(u))]
    assert trains == ["t", "x", "y", "few"]
    for text, what in (
        ("t train\nt test", "user 't' has two lines .*line 2"),
        ("t train\nnobody test", "no user 'nobody' .*line 2"),
        ("t trains", "'t trains' is no `user role` .*line 1.*train, valid, test"),
        ("t train", "7 users of the log have no role, the first is 'u'"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=what) as caught:
            split_log(log, "by-user", roles=str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"cannot be read.* \(data.roles\); name a file"):
        split_log(log, "by-user", roles=str(tmp_path / "none"))
    path.write_text("\n".join(f"{user} train" for user in log.users))
    with pytest.raises(UsageError, match=r"0 of 8 users.* `valid` and 2 `test`") as caught:
        split_log(log, "by-user", roles=str(path))
    assert str(path) in str(caught.value)  # the log is not at fault
    with pytest.raises(UsageError, match=r"data\.roles is not read while data\.split is leave-"):
        load_config("sasrec", sets={"data.roles": "x"}, flags={"data.path": "-"})


def test_a_run_knows_its_roles_again(tmp_path: Path) -> None:
    data, roles = tmp_path / "log.txt", tmp_path / "roles"
    write_lines(data, log_dict(users=30))
    users = read_log(data).users
    kinds = ["train", "train", "valid", "train", "test"]
    lines = [f"{user} {kinds[u % 5]}" for u, user in enumerate(users)]
    roles.write_text("\n".join(lines))
    sets = {"data.split": "by-user", "data.roles": str(roles), "training.epochs": 1}
    run = seqrec.train("sasrec", str(data), str(tmp_path / "run"), sets=sets, progress=False)
    digest = hashlib.sha256(roles.read_bytes()).hexdigest()
    assert run.result["protocol"]["roles_sha256"] == digest == run.config.data.roles_sha256
    assert run.evaluate()["metrics"] == run.result["metrics"]
    roles.write_text("\n".join(reversed(lines)))
    with pytest.raises(UsageError, match="the roles have changed"):
        run.evaluate()


def test_the_published_cut_of_beauty(real_log) -> None:
    log = read_log(real_log("Beauty_by_user.txt"))
    split = split_log(log, "by-user", roles=str(real_log("Beauty_by_user.roles.txt")))
    lengths = split.train.lengths()
    assert ((lengths > 0).sum(), len(split.valid.users)) == (15_654, 4_472)
    assert len(split.test.users) == 2_237 and np.maximum(lengths - 1, 0).sum() == 123_086


def test_too_few_users_for_by_user_is_one_line() -> None:
    log = read_log({f"u{u}": list("abc") for u in range(9)})
    with pytest.raises(UsageError, match="1 of 9 users can be evaluated"):
        split_log(log, "by-user")


def test_beauty_has_the_sizes_of_the_published_split(real_log) -> None:
    split = split_log(read_log(real_log("Beauty.txt")), "by-user")
    trains = int((split.train.lengths() > 0).sum())
    assert (trains, len(split.valid.users), len(split.test.users)) == (15_654, 4_472, 2_237)


# what is said, and runs ---------------------------------------------------------------------------


def test_the_configuration_knows_every_split() -> None:
    for name in SPLITS:
        assert load_config("sasrec", sets={"data.split": name}, flags={"data.path": "-"})
    with pytest.raises(UsageError, match="must be leave-one-out, by-user or global-time"):
        load_config("sasrec", sets={"data.split": "random"}, flags={"data.path": "-"})


def test_leave_one_out_on_a_log_with_times_says_that_it_looks_ahead() -> None:
    rows = [
        {"user": user, "item": item, "time": time}
        for user, times in {"early": (1, 2, 3), "late": (4, 5, 9), "later": (6, 7, 8)}.items()
        for item, time in zip("xyz", times, strict=True)
    ]
    log = read_log(pl.DataFrame(rows))
    # the newest training event is at 6; only the target at 3 is older
    assert "newer than the test target of 33.3% of the users" in split_log(log).remark
    assert "newer than" not in split_log(read_log({"a": list("xyz"), "b": list("zyx")})).remark


def test_ml_100k(real_log) -> None:
    log = read_log(real_log("ml-100k.inter"))
    assert round(log.tied_share * log.n_interactions) == 75_772
    text = "\n".join(describe(log))
    assert "943 users evaluated" in text and "global-time" in text
    split = split_log(log, "global-time")
    assert log.times is not None
    t_test = np.quantile(log.times, 0.9)
    assert int((log.times >= t_test).sum()) in range(10_000, 10_100)
    newest = [log.times[log.offsets[u] : log.offsets[u + 1]].max() for u in range(log.n_users)]
    assert split.test.users.tolist() == [u for u, t in enumerate(newest) if t >= t_test]


@pytest.mark.parametrize("name", ["by-user", "global-time"])
def test_a_run_under_each_split(tmp_path: Path, name: str) -> None:
    def trained(out: str, split_seed: int) -> seqrec.Run:
        sets = {"data.split": name, "encoder.dim": 8, "training.epochs": 1}
        if name == "by-user":  # alone draws anything
            sets["data.split_seed"] = split_seed
        return seqrec.train("sasrec", str(data), str(tmp_path / out), sets=sets, progress=False)

    if name == "by-user":
        data = write_lines(tmp_path / "log.txt", log_dict(users=60))
    else:
        data = tmp_path / "log.csv"
        log = timed(0, users=60)
        rows = [(log.users[u], log.items[i], t) for u in range(60) for t, i in events_of(log, u)]
        data.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    run = trained("a", 1)
    card = run.result["protocol"]
    assert card["id"] == f"{name}/exclude/mean" and card["split"] == name
    split: Split = split_log(read_log(data), name, 1)
    assert card["users_evaluated"] == len(split.test.users)
    assert run.evaluate()["metrics"] == run.result["metrics"]  # the same users are drawn again
    if name == "by-user":
        assert card["split_seed"] == 1
        assert trained("b", 2).result["metrics"] != run.result["metrics"]
