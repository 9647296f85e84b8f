"""``log.jsonl``: one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """Appends events to a run's log.

    Args:
        path: ``log.jsonl``; a torn last line, left by a crash, is cut off before the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            content = path.read_bytes()
            if not content.endswith(b"\n"):
                with path.open("rb+") as stream:
                    stream.truncate(content.rfind(b"\n") + 1)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **fields}) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of a log that count, in order.

    A torn last line is ignored.  After a crash a run goes on from its last saved step and may log
    an epoch again: of two events for an epoch the later one counts, in the earlier one's place.
    """
    events: list[dict[str, Any]] = []
    epochs: dict[int, int] = {}
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "epoch" and event["epoch"] in epochs:
                events[epochs[event["epoch"]]] = event
                continue
            if event.get("event") == "epoch":
                epochs[event["epoch"]] = len(events)
            events.append(event)
    return events
