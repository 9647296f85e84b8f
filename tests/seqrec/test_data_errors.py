"""Every mistake in a source is one line that names the place and how to mend it."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from seqrec.data import read_histories, read_log, split_log
from seqrec.errors import UsageError


def refused(source: object, **options) -> str:
    with pytest.raises(UsageError) as caught:
        read_log(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message == message.strip()
    assert "; " in message, "a message says how to mend it"
    return message


TEXTS = {
    # name, content -> what the line says, where
    "latin1": ("a.txt", b"u x y\nv caf\xe9 x\n", "not UTF-8", ":2)"),
    "latin1, CRLF": ("a.txt", b"u x y\r\nw x\r\nv caf\xe9 x\r\n", "not UTF-8", ":3)"),
    "utf-16": ("a.txt", "u x y\nv x\n".encode("utf-16"), "NUL", ":1)"),
    "NUL": ("a.txt", b"u x y\nv x\nw \0\n", "NUL", ":3)"),
    "NUL in csv": ("a.csv", b"user,item\nu,x\nv,\0\n", "NUL", ":3)"),
    "gzip": ("a.txt", b"\x1f\x8b\x08\x00rest", "packed (gzip)", "a.txt)"),
    "empty": ("a.txt", b"", "empty", "a.txt)"),
    "blank": ("a.txt", b" \n\r\n\t\n", "empty", "a.txt)"),
    "only BOM": ("a.txt", b"\xef\xbb\xbf", "empty", "a.txt)"),
    "no items": ("a.txt", b"u\nv\n", "no user with an item", "a.txt)"),
    "commas, no header": ("a.txt", b"u,x\nv,y\n", "no user with an item", "a.txt)"),
    "user twice": ("a.txt", b"u x y\nv x\nu z\n", "user 'u' is on two lines", "a.txt:1 and "),
    "user twice, bare": ("a.txt", b"u x y\nv x\n\nu\n", "user 'u' is on two lines", "a.txt:4)"),
    "short row": ("a.csv", b"user,item,time\nu,x,1\nu,y\n", "missing columns: 2", ":3)"),
    "short row after blanks": ("a.csv", b"\nuser,item\n\nu,x\n\n\nu\n", "missing columns", ":7)"),
    "long row": ("a.csv", b"user,item\nu,x\nu,y,z\n", "too many columns: 3", ":3)"),
    "short row, tabs": ("a.inter", b"user_id:token\titem_id:token\nu\tx\nu\n", "missing", ":3)"),
    "short row, blanks": ("a.txt", b"user item time\nu x 1\nv y\n", "missing columns", ":3)"),
    "quoted newline": ("a.csv", b'user,item,t\nu,x,"a\nb"\nu,y\n', "missing columns", ":4)"),
    "stray quote": ("a.csv", b'user,item\nu,x\nv,5"\n', "mark within a field", ":3)"),
    "text after quotes": ("a.csv", b'user,item\n"u",x\n"v"w,"y"\n', "mark within a field", ":3)"),
    "quote twice at the start": ("a.csv", b'user,item\n""u,x\n', "mark within a field", ":2)"),
    "open quote": ("a.csv", b'user,item\nu,x\nu,"y\nv,z\n', "quotation mark", ":3)"),
    "word as time": ("a.csv", b"user,item,time\nu,x,1\nu,y,noon\n", "'noon' is no time", ":3)"),
    "no time": ("a.csv", b"user,item,time\nu,x,1\nu,y,\n", "no time", ":3)"),
    "nan": ("a.csv", b"user,item,time\nu,x,nan\n", "'nan' is no time", ":2)"),
    "inf": ("a.csv", b"user,item,time\nu,x,2\nu,x,-inf\n", "'-inf' is no time", ":3)"),
    "overflow": ("a.csv", b"user,item,time\nu,x,1e999\n", "'1e999' is no time", ":2)"),
    "rating": ("a.csv", b"user,item,rating\nu,x,good\n", "'good' is no rating", ":2)"),
    "empty user": ("a.csv", b"user,item\nu,x\n,y\n", "empty user id", ":3)"),
    "empty item": ("a.csv", b"user,item\nu,x\nv, \n", "empty item id", ":3)"),
    "blank in id": (
        "a.csv",
        b"user,item\nu,x\nv,The Matrix\n",
        "'The Matrix' holds a blank",
        ":3)",
    ),
    "no item column": (
        "a.csv",
        b"user,product\nu,x\n",
        "no item column among: user, product",
        ":1)",
    ),
    "no user column": ("a.csv", b"who;item\nu;x\n", "no user column among: who, item", ":1)"),
    "no header": ("a.csv", b"u,x\nv,y\n", "no user column among: u, x", ":1)"),
    "half a header": ("a.txt", b"user_id product\nu x\n", "no item column", ":1)"),
    "half a header, commas": ("a.txt", b"user,product\nu,x\n", "no item column", ":1)"),
    "two item columns": ("a.csv", b"user,item,item_id\nu,x,y\n", "two item columns", ":1)"),
    "only a header": ("a.csv", b"user,item\n", "no user with an item", "a.csv)"),
    "no parquet": ("a.parquet", b"user,item\nu,x\n", "no Parquet file", "a.parquet)"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_files(tmp_path: Path, case: str) -> None:
    name, content, what, where = TEXTS[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert what in message and where in message and str(path) in message


def test_a_user_on_two_lines_hears_why_these_are_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("u x\nv y\nu z q\n")
    assert "`user item` on every line (line 3 has not two fields)" in refused(path)
    path.write_text("u x\nu y\n")
    assert "two fields" not in refused(path, format="lines")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in refused(str(tmp_path / "absent.csv"))
    assert "this is a folder" in refused(tmp_path)
    assert "cannot be read" in refused("a\0b")
    path = tmp_path / "closed.txt"
    path.write_text("u x y\n")

    def deny(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)  # root may read everything
    assert "no permission" in refused(path)


@pytest.mark.skipif(os.name != "posix", reason="names with line breaks are a thing of POSIX")
def test_a_line_break_in_a_name_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.txt"
    path.write_text("")
    refused(path)
    refused({"a\nb": ["x"]})


def test_options(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("u x\nv y z\n")
    assert "lines, pairs, inter, csv, parquet" in refused(path, format="json")
    message = refused(path, format="pairs")
    assert "3 fields where a pair has 2" in message and "a.txt:2)" in message
    assert "no user column" in refused(path, format="csv")
    assert "keep, first, adjacent" in refused(path, repeats="all")
    for bad in (-1, 1.5, "3", True):
        assert "data.min_item" in refused(path, min_item=bad)
    assert "no event is left" in refused(path, min_user=4)
    assert "is for files" in refused({"u": ["x"]}, format="csv")


@pytest.mark.parametrize(
    "column, values, what",
    [
        ("user", ["u", None], "no user (data frame, row 1)"),
        ("user", [1.0, 2.0], "the user column holds Float64"),
        ("user", [True, False], "the user column holds Boolean"),
        ("item", [[1], [2]], "the item column holds List"),
        ("item", ["x", ""], "an empty item id (data frame, row 1)"),
        ("item", ["x", "a\x00b"], "holds a blank"),
        ("time", [1.0, float("nan")], "nan is no time (data frame, row 1)"),
        ("time", [None, 1], "no time (data frame, row 0)"),
        ("time", ["1", "x"], "'x' is no time (data frame, row 1)"),
    ],
)
def test_frames(column: str, values: list, what: str) -> None:
    columns = {"user": ["u", "v"], "item": ["x", "y"], "time": [1, 2], column: values}
    assert what in refused(pl.DataFrame(columns))


def test_python_sources() -> None:
    assert "from int" in refused(3)
    assert "no user column among: a" in refused(pl.DataFrame({"a": [1]}))
    assert "no rows" in refused(pl.DataFrame({"user": [], "item": []}))
    assert "no user with an item" in refused({})
    assert "no user with an item" in refused({"u": []})
    assert "not str" in refused({"u": "xyz"})
    assert "1.5 is no id (user 'u')" in refused({"u": [1.5]})
    assert "None is no id" in refused({"u": [None]})
    assert "True is no id" in refused({"u": [True]})
    assert "two users have one name" in refused({"1": ["x"], 1: ["y"]})
    assert "'a b' holds a blank (user 'u')" in refused({"u": ["x", "a b"]})
    assert "no text" in refused({"u": ["\ud800"]})


def test_too_few_users_to_evaluate() -> None:
    log = read_log({"a": list("xyz"), "b": list("xy"), "c": ["x"]})
    with pytest.raises(UsageError, match="1 of 3 users can be evaluated") as caught:
        split_log(log)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="the splits are: leave-one-out"):
        split_log(log, "leave-two-out")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"u \xff\n", "not UTF-8"),
        (b"u x\nv \0\n", "NUL"),
        (b"user,item,time\nu,x,late\n", "'late' is no time"),
    ],
)
def test_histories(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "h"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=what) as caught:
        read_histories(path)
    assert len(str(caught.value).splitlines()) == 1
