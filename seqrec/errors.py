"""What ends a command early: a user's mistake, and Ctrl-C."""

from __future__ import annotations

from pathlib import Path


class UsageError(ValueError):
    """A mistake in command, configuration or data, told in one line.

    ``str(error)`` is ``WHAT (WHERE); HOW TO MEND``; the command prints it behind ``seqrec: `` and
    exits with 2.

    Args:
        what: what is wrong, with the offending value.
        where: file, line, key or argument it stands in; may be empty.
        mend: what to do about it; may be empty.
    """

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        text = what
        if where:
            text += f" ({where})"
        if mend:
            text += f"; {mend}"
        # a name from a file may hold a line break; the promise is one line
        super().__init__(" ".join(text.split()))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the state was saved: ``seqrec resume`` goes on from there.

    Args:
        directory: the run directory that holds the saved state.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(f"stopped, state saved in {directory}")
        self.directory = directory


class LeakError(RuntimeError):
    """Metrics better than possible on a synthetic log: held-out events have reached the weights."""
