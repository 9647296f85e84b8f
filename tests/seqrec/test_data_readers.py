"""Reading logs: formats, order, ids, filters, and round trips of random logs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from seqrec.data import InteractionLog, read_log

Histories = dict[str, list[str]]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def histories(log: InteractionLog) -> Histories:
    return {
        user: [log.items[v] for v in log.item_rows[log.offsets[u] : log.offsets[u + 1]]]
        for u, user in enumerate(log.users)
    }


LINES = "bob B2 007 B2\nann 007\n"
PAIRS = "bob B2\nann 007\nbob 007\nbob B2\n"
WANTED = {"bob": ["B2", "007", "B2"], "ann": ["007"]}


@pytest.mark.parametrize("name, text, form", [("a.txt", LINES, "lines"), ("b", PAIRS, "pairs")])
def test_text_without_a_header(tmp_path: Path, name: str, text: str, form: str) -> None:
    log = read_log(write(tmp_path, name, text))
    assert histories(log) == WANTED
    assert (log.users, log.items, log.format) == (["bob", "ann"], ["B2", "007"], form)
    assert (log.n_users, log.n_items, log.n_interactions) == (2, 2, 4)
    assert log.times is None and log.tied_share is None
    assert log.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert log.offsets.dtype == log.item_rows.dtype == np.int64


@pytest.mark.parametrize(
    "mangle",
    [
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("\n", "\r"),
        lambda t: t.rstrip("\n"),
        lambda t: "\ufeff" + t,
        lambda t: "\n \n" + t.replace("\n", "\n\n\t\n") + "\n",
        lambda t: t.replace(" ", "  \t ").replace("\n", " \n "),
    ],
    ids=["CRLF", "CR", "no final newline", "BOM", "blank lines", "runs of blanks"],
)
def test_harmless_differences(tmp_path: Path, mangle) -> None:
    assert histories(read_log(write(tmp_path, "a.txt", mangle(LINES)))) == WANTED
    assert histories(read_log(write(tmp_path, "b.txt", mangle(PAIRS)))) == WANTED
    table = "user,item,time\nbob,B2,1\nbob,007,2\nbob,B2,3\nann,007,0\n"
    for name, separator in (("c.csv", ","), ("d.txt", "\t"), ("e.csv", " ")):
        text = mangle(table.replace(",", separator))
        assert histories(read_log(write(tmp_path, name, text))) == WANTED, name


def test_two_fields_on_every_line_are_pairs_unless_lines_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "u1 x\nu2 y\nu3 x\n")
    log = read_log(path)
    assert log.format == "pairs" and "data.format=lines" in log.notes[0]
    forced = read_log(path, format="lines")
    assert forced.format == "lines" and histories(forced) == histories(log)


def test_a_user_without_items_is_skipped_and_said(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "a.txt", "u1 x y\nnobody\nu2 y x z\n"))
    assert log.users == ["u1", "u2"]
    assert any("1 lines name a user without items" in note for note in log.notes)


def test_inter_is_sorted_by_user_time_and_place(tmp_path: Path) -> None:
    rows = [("b", "i1", 5), ("a", "i2", 9), ("b", "i3", 4), ("b", "i4", 5), ("a", "i1", 9)]
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    text += "".join(f"{u}\t{i}\t3.5\t{t}\n" for u, i, t in rows)
    log = read_log(write(tmp_path, "x.inter", text))
    assert log.format == "inter" and log.items == ["i1", "i2", "i3", "i4"]
    assert histories(log) == {"b": ["i3", "i1", "i4"], "a": ["i2", "i1"]}
    assert log.times is not None and log.times.tolist() == [4, 5, 5, 9, 9]
    assert log.tied_share == 4 / 5
    # the header alone tells, too
    assert read_log(write(tmp_path, "x.txt", text)).format == "inter"


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize(
    "header", ["user,item,time", "Timestamp,ITEM_ID,user_id", "rating,item,extra,user,time"]
)
def test_csv(tmp_path: Path, separator: str, header: str) -> None:
    rows = [("u", "007", 3), ("v", "B2", 2), ("u", "B2", 1)]
    names = header.split(",")
    lines = [header]
    for user, item, time in rows:
        values = {"u": user, "i": item, "t": str(time), "r": "1.5", "e": "x"}
        lines.append(",".join(values[name[0].lower()] for name in names))
    log = read_log(write(tmp_path, "x.csv", "\n".join(lines).replace(",", separator)))
    assert log.format == "csv" and histories(log) == {"u": ["B2", "007"], "v": ["B2"]}


def test_csv_quotes(tmp_path: Path) -> None:
    text = '"user","item","title"\n"u,1","a""b","two\nlines, ""quoted"""\n\n"u2" , c ,""\n'
    log = read_log(write(tmp_path, "x.csv", text.replace('"u2" ', '"u2"')))
    assert histories(log) == {"u,1": ['a"b'], "u2": ["c"]}
    # nothing is quoted in an atomic file
    text = 'user_id:token\titem_id:token\n"u\ta"b\n'
    assert histories(read_log(write(tmp_path, "x.inter", text))) == {'"u': ['a"b']}


def test_whole_times_are_compared_exactly(tmp_path: Path) -> None:
    big = 1_700_000_000_000_000_000  # nanoseconds: neighbours are one float64
    text = f"user,item,time\nu,late,{big + 1}\nu,early,{big}\n"
    assert histories(read_log(write(tmp_path, "x.csv", text))) == {"u": ["early", "late"]}
    text = "user,item,time\nu,late,1.5\nu,early,-2e-1\n"
    assert histories(read_log(write(tmp_path, "y.csv", text))) == {"u": ["early", "late"]}


def test_only_a_users_own_events_tie() -> None:
    frame = pl.DataFrame({"user": ["a", "a", "b", "b"], "item": list("xyxy"), "time": [1, 2, 2, 3]})
    assert read_log(frame).tied_share == 0
    assert read_log(frame.with_columns(time=pl.Series([1, 2, 2, 2]))).tied_share == 0.5


def test_parquet_and_frames(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item_id": pl.Series([7, 8, 9], dtype=pl.UInt32),
            "user": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
            "time": pl.Series([2, 1, 1]).cast(pl.Datetime("us")),
            "rating": [1.0, 2.0, 3.0],
            "other": [[1], [2], [3]],
        }
    )
    wanted = {"a": ["9", "7"], "b": ["8"]}
    path = tmp_path / "x.parquet"
    frame.write_parquet(path)
    for source in (path, frame, frame.lazy(), FakePandas(frame)):
        log = read_log(source)
        assert histories(log) == wanted
        assert log.times is not None and log.times[1] > log.times[0]
    path.rename(tmp_path / "unnamed")
    assert read_log(tmp_path / "unnamed").format == "parquet"
    assert read_log(frame).format == "frame"
    numbered = frame.with_columns(time=pl.Series([2, 1, 1]))
    assert read_log(numbered).sha256 == read_log(FakePandas(numbered)).sha256
    assert read_log(frame).sha256 != read_log(frame[:2]).sha256


class FakePandas:
    """What the reader may know of pandas: ``columns``, ``[name]`` and ``to_numpy``."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.columns = frame.columns
        self._arrays = {}
        for name in frame.columns:
            column = frame[name]
            if column.dtype == pl.Categorical:
                column = column.cast(pl.String)
            if column.dtype == pl.Datetime:
                column = column.cast(pl.Datetime("ns"))
            array = column.to_numpy()
            self._arrays[name] = array.astype(object) if column.dtype == pl.String else array

    def __getitem__(self, name: str) -> FakePandas:
        column = object.__new__(FakePandas)
        column._array = self._arrays[name]
        return column

    def to_numpy(self) -> np.ndarray:
        return self._array


def test_dict() -> None:
    log = read_log({"a": ["x", 7, np.int64(8)], 3: ("x",), "nothing": []})
    assert histories(log) == {"a": ["x", "7", "8"], "3": ["x"]}
    assert log.format == "dict"
    assert log.sha256 == read_log({"a": ["x", "7", "8"], "3": ["x"]}).sha256
    assert log.sha256 != read_log({"a": ["x", "7"], "3": ["8", "x"]}).sha256


def test_repeats() -> None:
    source = {"a": list("xxyxyy"), "b": list("yy")}
    assert histories(read_log(source)) == source
    assert histories(read_log(source, repeats="first")) == {"a": ["x", "y"], "b": ["y"]}
    first = read_log({"a": list("xyxz"), "b": list("zzyz")}, repeats="first")
    assert histories(first) == {"a": ["x", "y", "z"], "b": ["z", "y"]}
    adjacent = read_log(source, repeats="adjacent")
    assert histories(adjacent) == {"a": list("xyxy"), "b": ["y"]}
    assert "0 users, 0 items, 3 interactions" in adjacent.notes[-1]
    assert adjacent.sha256 == read_log(source).sha256


def test_adjacent_repeats_that_the_core_brings_together() -> None:
    source = {"a": list("xrx"), "b": list("xyz"), "c": list("zyx")}
    log = read_log(source, repeats="adjacent", min_item=2)
    assert histories(log) == {"a": ["x"], "b": list("xyz"), "c": list("zyx")}


def brute_core(source: Histories, min_user: int, min_item: int) -> Histories:
    while True:
        count: dict[str, int] = {}
        for items in source.values():
            for item in items:
                count[item] = count.get(item, 0) + 1
        kept = {u: [i for i in items if count[i] >= min_item] for u, items in source.items()}
        # a user is judged in the same turn as the items
        kept = {u: kept[u] for u, items in source.items() if len(items) >= min_user and kept[u]}
        if kept == source:
            return source
        source = kept


@pytest.mark.parametrize("seed", range(20))
def test_core_against_a_plain_loop(seed: int) -> None:
    draw = random.Random(seed)
    source = {
        f"u{u}": [f"i{draw.randrange(12)}" for _ in range(draw.randint(1, 9))] for u in range(20)
    }
    wanted = brute_core(source, 4, 5)
    if not wanted:
        pytest.skip("nothing is left of this log")
    log = read_log(source, min_user=4, min_item=5)
    assert histories(log) == wanted
    order = dict.fromkeys(i for items in source.values() for i in items)
    left = {i for items in wanted.values() for i in items}
    assert log.items == [i for i in order if i in left]
    assert log.users == [u for u in source if u in wanted]


@pytest.mark.parametrize("seed", range(15))
def test_random_logs_come_back_from_every_format(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    alphabet = "ab07-_.é漢\u00a0'#%"
    name = lambda: "".join(draw.choices(alphabet, k=draw.randint(1, 4)))  # noqa: E731
    users = list({name() for _ in range(draw.randint(2, 12))})
    items = list({name() for _ in range(draw.randint(1, 15))})
    wanted = {u: draw.choices(items, k=draw.randint(2, 9)) for u in users}

    lines = "".join(f"{u} {' '.join(v)}\n" for u, v in wanted.items())
    assert histories(read_log(write(tmp_path, "l", lines), format="lines")) == wanted

    # scattered over the file, each user's events in order
    left = {u: list(v) for u, v in wanted.items()}
    rows = []
    while left:
        user = draw.choice(list(left))
        rows.append((user, left[user].pop(0)))
        if not left[user]:
            del left[user]
    pairs = "".join(f"{u} {i}\n" for u, i in rows)
    log = read_log(write(tmp_path, "p", pairs), format="pairs")
    assert histories(log) == wanted and list(wanted) != [] and log.format == "pairs"
    assert log.users == list(dict.fromkeys(u for u, _ in rows))
    assert log.items == list(dict.fromkeys(i for _, i in rows))

    # shuffled, the time alone tells the order; equal times keep the place in the file
    clock = {u: 0 for u in wanted}
    timed = []
    for user, item in rows:
        clock[user] += draw.choice([0, 1, 7])
        timed.append((user, item, clock[user]))
    ordered: Histories = {}
    draw.shuffle(timed)
    for user, item, _ in sorted(timed, key=lambda row: row[2]):
        ordered.setdefault(user, []).append(item)
    table = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in timed)
    assert histories(read_log(write(tmp_path, "t.csv", table))) == ordered
    frame = pl.DataFrame(timed, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(tmp_path / "t.parquet")
    assert histories(read_log(tmp_path / "t.parquet")) == ordered
    assert read_log(tmp_path / "t.parquet").tied_share == read_log(frame).tied_share


@pytest.mark.parametrize(
    "name, users, items, interactions, tied",
    [
        ("Beauty.txt", 22_363, 12_101, 198_502, None),
        ("Toys_and_Games.txt", 19_412, 11_924, 167_597, None),
        ("ml-1m.txt", 6_040, 3_416, 999_611, None),
        ("ml-100k.inter", 943, 1_682, 100_000, 0.75772),
    ],
)
def test_real_logs(real_log, name, users, items, interactions, tied) -> None:
    path = real_log(name)
    log = read_log(path)
    assert (log.n_users, log.n_items, log.n_interactions) == (users, items, interactions)
    assert log.tied_share == tied
    if log.format == "lines":
        text = path.read_text().splitlines()
        for u in (0, 1, users // 2, users - 1):
            row = log.item_rows[log.offsets[u] : log.offsets[u + 1]]
            assert [log.users[u], *(log.items[v] for v in row)] == text[u].split()
