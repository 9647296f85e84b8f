"""log.jsonl: appended to, torn by a crash, read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqrec.training.journal import Journal, read_journal


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.write("start", step=0)
    journal.write("epoch", epoch=1, valid={"NDCG@10": 0.125}, note="ü\u2028\n")
    lines = (tmp_path / "log.jsonl").read_bytes().split(b"\n")
    assert lines[-1] == b"" and len(lines) == 3
    assert read_journal(journal.path) == [
        {"event": "start", "step": 0},
        {"event": "epoch", "epoch": 1, "valid": {"NDCG@10": 0.125}, "note": "ü\u2028\n"},
    ]


def test_a_line_torn_anywhere_is_ignored_and_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path)
    journal.write("start", step=0)
    journal.write("epoch", epoch=1, loss=1.5)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        # a line that lost only its end of line is complete to a reader
        assert len(read_journal(path)) in (
            complete,
            complete + (size in (first - 1, len(whole) - 1)),
        )
        Journal(path).write("resume", step=0)
        events = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [event["event"] for event in events] == ["start"] * complete + ["resume"]


@pytest.mark.parametrize("tail", [b"\0" * 40, b'{"event": "epo', b"\xff\xfe", b'{"event": 3}x'])
def test_garbage_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "log.jsonl"
    Journal(path).write("start")
    path.write_bytes(path.read_bytes() + tail)
    assert read_journal(path) == [{"event": "start"}]
    Journal(path).write("end")
    assert path.read_text() == '{"event": "start"}\n{"event": "end"}\n'


def test_of_two_events_for_an_epoch_the_later_counts_in_the_place_of_the_earlier(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.write("start")
    for epoch, loss in ((1, 5.0), (2, 4.0)):
        journal.write("epoch", epoch=epoch, loss=loss)
    journal.write("resume")
    for epoch, loss in ((2, 3.0), (3, 2.0)):
        journal.write("epoch", epoch=epoch, loss=loss)
    journal.write("end")
    events = read_journal(journal.path)
    assert [event["event"] for event in events] == [
        *("start", "epoch", "epoch", "resume", "epoch", "end")
    ]
    assert [event["loss"] for event in events if event["event"] == "epoch"] == [5.0, 3.0, 2.0]


def test_opening_an_empty_log_leaves_it_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch()
    Journal(path)
    assert path.read_bytes() == b""
    assert read_journal(path) == []
