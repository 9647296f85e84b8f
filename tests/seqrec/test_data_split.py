"""Leave-one-out, jagged rows, and what `describe` and `read_histories` make of a log."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from seqrec.data import Jagged, describe, read_histories, read_log, split_log


def rows(jagged: Jagged) -> list[list[int]]:
    return [jagged.row(b).tolist() for b in range(len(jagged))]


def test_leave_one_out_by_hand() -> None:
    log = read_log({"a": list("pqrs"), "b": ["p"], "c": list("rqp"), "d": list("qs")})
    split = split_log(log)  # p q r s are 0 1 2 3
    assert split.name == "leave-one-out" and split.n_items == 4
    assert rows(split.train) == [[0, 1], [0], [2], [1, 3]]
    assert split.valid.users.tolist() == split.test.users.tolist() == [0, 2]
    assert rows(split.valid.inputs) == [[0, 1], [2]]
    assert split.valid.items.tolist() == [2, 1]
    assert rows(split.test.inputs) == [[0, 1, 2], [2, 1]]
    assert split.test.items.tolist() == [3, 0]
    assert split.users_not_evaluated == 2


@pytest.mark.parametrize("seed", range(10))
def test_leave_one_out_of_random_logs(seed: int) -> None:
    draw = random.Random(seed)
    source = {f"u{u}": draw.choices("abcdefg", k=draw.randint(1, 8)) for u in range(30)}
    log = read_log(source)
    split = split_log(log)
    place = {item: v for v, item in enumerate(log.items)}
    kept = [u for u, user in enumerate(log.users) if len(source[user]) >= 3]
    assert split.test.users.tolist() == kept and split.users_not_evaluated == 30 - len(kept)
    for u, user in enumerate(log.users):
        events = [place[i] for i in source[user]]
        assert split.train.row(u).tolist() == (events[:-2] if u in kept else events)
    for b, u in enumerate(kept):
        events = [place[i] for i in source[log.users[u]]]
        assert split.valid.inputs.row(b).tolist() == events[:-2]
        assert split.test.inputs.row(b).tolist() == events[:-1]
        assert [split.valid.items[b], split.test.items[b]] == events[-2:]


def test_jagged() -> None:
    jagged = Jagged.from_lists([[4, 5], [], [6]])
    assert jagged.offsets.tolist() == [0, 2, 2, 3] and len(jagged) == 3
    assert jagged.lengths().tolist() == [2, 0, 1]
    assert jagged.row_of_values().tolist() == [0, 0, 2]
    assert rows(jagged.take(np.array([2, 0, 1, 0]))) == [[6], [4, 5], [], [4, 5]]
    assert rows(Jagged.from_lists([])) == []


def test_held_out_items_of_the_real_logs(real_log) -> None:
    # counted when the logs were put together
    for name, items, users in (("Beauty.txt", 33, 138), ("Toys_and_Games.txt", 48, 279)):
        text = "\n".join(describe(read_log(real_log(name))))
        assert f"{items} items occur only in held-out places; {users} test targets" in text


def test_describe(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,time\na,x,1\na,x,2\na,y,2\na,z,3\nb,y,1\nb,x,5\nb,y,6\nc,x,1\nc,q,2\n"
    )
    lines = describe(read_log(path, min_item=1))
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert facts["file"] == str(path)
    assert facts["format"] == "csv, comma-separated"
    assert (facts["users"], facts["items"], facts["interactions"]) == ("3", "4", "9")
    text = "\n".join(lines)
    assert "mean 3.00, median 3, 2 to 4" in text
    assert "2 events (22.22%) repeat an item of the same user, 1 of them right after it" in text
    assert "22.22% of the events share user and time" in text
    assert "2 users evaluated, 1 with fewer than 3 events only train" in text
    assert "1 items occur only in held-out places; 1 test targets are among them" in text
    dropped = "\n".join(describe(read_log(path, min_item=2)))
    assert "dropped by min_user=0, min_item=2, repeats=keep: 0 users, 2 items, 2 inter" in dropped


def test_describe_counts_repeats_inside_a_user() -> None:
    text = "\n".join(describe(read_log({"a": list("xyxz"), "b": list("zyx")})))
    assert "1 events (14.29%) repeat an item of the same user, 0 of them right after" in text


def test_describe_says_why_nothing_can_be_evaluated() -> None:
    lines = describe(read_log({"a": list("xyz"), "b": ["x"]}))
    assert "nothing: 1 of 2 users can be evaluated" in lines[-1]


def test_histories_are_lines_whatever_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_bytes(b"\xef\xbb\xbfann x y\r\n\r\nuser x\nann z\nnobody\nbob 007")
    wanted = [
        ("ann", ["x", "y"]),
        ("user", ["x"]),
        ("ann", ["z"]),
        ("nobody", []),
        ("bob", ["007"]),
    ]
    assert read_histories(path) == wanted
    path.write_text("user_id x\n")  # a header names both columns
    assert read_histories(path) == [("user_id", ["x"])]
    path.write_text("u x\nv y\nu z\n")  # for train these would be pairs
    assert read_histories(path) == [("u", ["x"]), ("v", ["y"]), ("u", ["z"])]
    assert read_histories(path, format="pairs") == [("u", ["x", "z"]), ("v", ["y"])]


def test_histories_from_tables(tmp_path: Path) -> None:
    text = "user,item,time\nu,late,2\nv,x,1\nu,early,1\n"
    wanted = [("u", ["early", "late"]), ("v", ["x"])]
    for name, content in (("h.csv", text), ("h", text.replace(",", "\t"))):
        (tmp_path / name).write_text(content)
        assert read_histories(tmp_path / name) == wanted
    read = read_log(tmp_path / "h.csv")
    from seqrec.data.export import write_parquet

    write_parquet(read, tmp_path / "h.parquet")
    assert read_histories(tmp_path / "h.parquet") == wanted


def test_histories_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"u x y\n")))
    assert read_histories("-") == [("u", ["x", "y"])]
