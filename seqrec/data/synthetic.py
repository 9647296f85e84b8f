"""A log drawn from a known law, so that the best possible ranker is known too.

Item v has a group (v mod groups), a popularity 1 / (rank in group + 5) there, the ranks 1, 2, ..
in the order of v, and five successors drawn uniformly (weights 1/2 1/4 1/8 1/16 1/16; one drawn
twice adds up). A user has one hidden group, uniform, and 5 + Geometric(mean 5; at least 1) events,
at most 50 and at most as many as there are items. The first event is from the group by popularity;
each next one is, with probability .5 a successor of the last, .35 from the group, .15 uniform over
the catalogue, drawn anew as a whole until the user has not had it.

Every draw is a Philox number at (user, place, attempt), compared with tables of float64 sums: the
same log on every machine. Item row v is item v, and the whole catalogue is in the log's item list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from seqrec.data.log import InteractionLog
from seqrec.data.philox import STREAM_EVENTS, STREAM_SUCCESSORS, STREAM_USERS, words
from seqrec.errors import UsageError

SUCCESSOR_WEIGHTS = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16])
FROM_SUCCESSORS, FROM_GROUP, FROM_CATALOGUE = 0.50, 0.35, 0.15
FEWEST_EVENTS, MOST_EVENTS, MEAN_EXTRA = 5, 50, 5

_ATTEMPTS = 1 << 20  # counter room for the attempts at one place


@dataclass(frozen=True)
class Specification:
    """What ``synthetic:key=value,...`` can say."""

    users: int = 10_000
    items: int = 500
    groups: int = 10
    seed: int = 0

    def __str__(self) -> str:
        """The canonical text: equal logs have equal text."""
        return "synthetic:" + ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def parse(cls, text: str) -> Specification:
        """From ``synthetic[:users=..,items=..,groups=..,seed=..]``.

        Raises:
            UsageError: an unknown key, no whole number, or numbers that make no log.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, int] = {}
        _, _, rest = text.partition(":")
        for part in rest.split(",") if rest else []:
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise UsageError(f"unknown key {name!r}", text, f"the keys are: {', '.join(known)}")
            if name in values:
                raise UsageError(f"{name} is given twice", text, "give it once")
            if not (value.isascii() and value.isdigit()):
                raise UsageError(
                    f"{name}={value!r} is no whole number", text, f"for example {name}=1000"
                )
            values[name] = int(value)
        found = cls(**values)
        found._check(text)
        return found

    def _check(self, text: str) -> None:
        least = FEWEST_EVENTS + 1
        for name, low, high in (
            ("users", 2, 1 << 27),
            ("items", least, 1 << 27),
            ("groups", 1, 1 << 27),
            ("seed", 0, (1 << 63) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name}={value} is out of range", text, f"{low} to {high:,}")
        if self.items < self.groups:
            raise UsageError(
                f"items={self.items} is less than groups={self.groups}",
                text,
                "every group needs an item",
            )


class World:
    """The law a synthetic log is drawn from.

    Attributes:
        successors: int64 [items, 5].
        popularity: float64 [items], the probability of each item within its group.
    """

    def __init__(self, specification: Specification) -> None:
        self.specification = s = specification
        place = np.arange(len(SUCCESSOR_WEIGHTS))
        drawn = words(s.seed, STREAM_SUCCESSORS, np.arange(s.items)[:, None], place)
        self.successors = _choice(drawn[0], s.items)
        # the cumulative weights of the larger groups; a smaller group stops one item earlier
        self._weights = np.cumsum(1.0 / (np.arange(1, -(-s.items // s.groups) + 1) + 5))
        before, group = np.divmod(np.arange(s.items), s.groups)
        self.popularity = 1.0 / (before + 1 + 5) / self._weights[self._group_size(group) - 1]

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """A log: offsets int64 [users + 1] and items int64 [N]."""
        s = self.specification
        drawn = words(s.seed, STREAM_USERS, np.arange(s.users))
        group = _choice(drawn[0], s.groups)
        lengths = np.minimum(_length(drawn[1]), s.items)
        history = np.full((s.users, int(lengths.max())), -1, dtype=np.int64)
        for place in range(history.shape[1]):
            pending = np.flatnonzero(lengths > place)
            attempt = 0
            while len(pending):
                item = self._draw(pending, place, attempt, group[pending], history)
                old = (history[pending, :place] == item[:, None]).any(axis=1)
                history[pending[~old], place] = item[~old]
                pending = pending[old]
                attempt += 1
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return offsets, history[history >= 0]

    def step(self, groups: np.ndarray, last: np.ndarray) -> np.ndarray:
        """m_g(v | last), the mixture a next event is drawn from: float64 [B, items].

        Args:
            groups, last: int64 [B], the user's group and last item.
        """
        s = self.specification
        rows = np.arange(len(groups))
        # whole groups: item v stands at [v // groups, v mod groups], places past the last are cut
        ranks = len(self._weights)
        popularity = np.zeros(ranks * s.groups)
        popularity[: s.items] = self.popularity
        table = np.full((len(groups), ranks, s.groups), FROM_CATALOGUE / s.items)
        table[rows, :, groups] += FROM_GROUP * popularity.reshape(ranks, s.groups).T[groups]
        mixture = table.reshape(len(groups), ranks * s.groups)[:, : s.items]
        for place, weight in enumerate(SUCCESSOR_WEIGHTS):
            mixture[rows, self.successors[last, place]] += FROM_SUCCESSORS * weight
        return mixture

    def _draw(
        self, users: np.ndarray, place: int, attempt: int, group: np.ndarray, history: np.ndarray
    ) -> np.ndarray:
        """One draw a user for an event at ``place``, whether or not the user has had the item."""
        s = self.specification
        part, which, *_ = words(s.seed, STREAM_EVENTS, users, place * _ATTEMPTS + attempt)
        size = self._group_size(group)
        before = np.searchsorted(self._weights, _unit(which) * self._weights[size - 1], "right")
        from_group = group + np.minimum(before, size - 1) * s.groups
        if place == 0:
            return from_group
        successor = np.searchsorted(np.cumsum(SUCCESSOR_WEIGHTS), _unit(which), side="right")
        from_successors = self.successors[history[users, place - 1], successor]
        return np.select(
            [_unit(part) < FROM_SUCCESSORS, _unit(part) < FROM_SUCCESSORS + FROM_GROUP],
            [from_successors, from_group],
            _choice(which, s.items),
        )

    def _group_size(self, group: np.ndarray) -> np.ndarray:
        s = self.specification
        return (s.items - group + s.groups - 1) // s.groups


def read_synthetic(text: str) -> InteractionLog:
    """The log of ``synthetic[:users=..,items=..,groups=..,seed=..]``."""
    specification = Specification.parse(text)
    offsets, items = World(specification).sample()
    return InteractionLog(
        users=[f"u{u}" for u in range(specification.users)],
        items=[f"i{v}" for v in range(specification.items)],
        offsets=offsets,
        item_rows=items,
        times=None,
        file=text,
        format="synthetic",
        sha256=hashlib.sha256(str(specification).encode()).hexdigest(),
        tied_share=None,
        notes=(str(specification),),
    )


def _choice(word: np.ndarray, m: int) -> np.ndarray:
    """A number in [0, m) from 32 random bits."""
    return word * m >> 32


def _unit(word: np.ndarray) -> np.ndarray:
    """A number in [0, 1) from 32 random bits, float64, exact."""
    return word * 2.0**-32


def _length(word: np.ndarray) -> np.ndarray:
    """5 + Geometric(mean 5), at most 50: events of a user."""
    most = MOST_EVENTS - FEWEST_EVENTS
    # P(Geometric <= k) for k = 1, 2, ..; a table, because log() may differ between machines
    at_most = 1 - np.cumprod(np.full(most, 1 - 1 / MEAN_EXTRA))
    extra = 1 + np.searchsorted(at_most, _unit(word), side="right")
    return FEWEST_EVENTS + np.minimum(extra, most)
