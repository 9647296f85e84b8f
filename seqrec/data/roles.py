"""Which users train, validate and test, as a file says: for a cut that was published and not drawn.

One line a user, ``user role``, in any order; the roles are ``train``, ``valid`` and ``test``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqrec.data.text import check_text
from seqrec.errors import UsageError

if TYPE_CHECKING:
    from seqrec.data.log import InteractionLog

ROLES = ("train", "valid", "test")


@dataclass(frozen=True)
class Roles:
    """The role of every user of a log.

    Attributes:
        codes: int64 [U], an index into ``ROLES``.
        sha256: of the file.
    """

    codes: np.ndarray
    sha256: str

    def users(self, role: str) -> np.ndarray:
        """Rows of the users with this role, ascending."""
        return np.flatnonzero(self.codes == ROLES.index(role))


def read_roles(path: str, log: InteractionLog) -> Roles:
    """Read a file of roles and bring it into the order of the log's users.

    Raises:
        UsageError: with the line: no such file, not text, a line that is not ``user role``, a user
            the log does not have or that has two lines; or a user of the log without a line.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "data.roles", "name a file of `user role`"
        ) from error
    rows = {user: u for u, user in enumerate(log.users)}
    codes = np.full(log.n_users, -1, dtype=np.int64)
    for number, line in enumerate(check_text(raw, path).decode().split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 2 or words[1] not in ROLES:
            raise UsageError(
                f"{line[:60]!r} is no `user role`", where, f"the roles are {', '.join(ROLES)}"
            )
        user = rows.get(words[0])
        if user is None:
            raise UsageError(f"the log has no user {words[0]!r}", where, "roles of another log?")
        if codes[user] >= 0:
            raise UsageError(f"user {words[0]!r} has two lines", where, "leave one of them")
        codes[user] = ROLES.index(words[1])
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise UsageError(
            f"{len(missing)} users of the log have no role, the first is {log.users[missing[0]]!r}",
            path,
            "give each a line `user role`",
        )
    return Roles(codes, hashlib.sha256(raw).hexdigest())
