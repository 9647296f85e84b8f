"""The `[negatives]` table: who draws the negatives of a sampled loss, and from what.

A key that not every sampler reads names those that do (`when`); set in vain it is an error.  What a
method starts with stands in its ``presets/<method>/default.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from seqrec import keys
from seqrec.keys import Rule, above, at_least, one_of
from seqrec.negatives import SAMPLERS

_SAMPLED = ("sasrec-sampled", "r2ns")


def _sampler(*names: str) -> dict[str, Rule]:
    return {"negatives.sampler": one_of(*names)}


_RANKED = _sampler("dns", "mixgcf", "dns+", "mixgcf+", "r2ns")
_NARROWED = _sampler("dns+", "mixgcf+", "r2ns")
_R2NS = _sampler("r2ns")

_key = partial(keys.key, methods=_SAMPLED)


@dataclass(frozen=True)
class NegativesConfig:
    """A sampler and its numbers."""

    sampler: str = _key("uniform", help="draws the negatives", rule=one_of(*SAMPLERS))
    count: int = _key(1, help="negatives of a positive", rule=at_least(1))
    exclude: str = _key(
        "history",
        help="no negative of a target is an item up to it, or any of its training sequence",
        rule=one_of("history", "sequence"),
    )
    power: float = _key(
        1.0,
        help="chances are training counts to this power",
        rule=at_least(0),
        when=_sampler("popularity"),
    )
    pool: int = _key(100, help="uniform candidates of a row", rule=at_least(0), when=_RANKED)
    top_m: int = _key(
        5,
        help="a negative is one of this many best candidates; for r2ns when the curriculum is over",
        rule=at_least(1),
        when=_NARROWED,
    )
    recall: int = _key(
        100,
        help="global candidates, the same for all rows of a batch",
        rule=at_least(0),
        when=_R2NS,
    )
    recall_by: str = _key(
        "max-index",
        help="global candidates are best by the mean query's largest coordinate or by all of it",
        rule=one_of("max-index", "mean"),
        when=_R2NS,
    )
    decay: float = _key(
        0.05,
        help="how fast the curriculum narrows, an epoch; 0: top_m from its start",
        rule=at_least(0),
        when=_R2NS,
    )
    terms: int = _key(200, help="epochs the curriculum is made for", rule=above(0), when=_R2NS)
    indexing: str = _key(
        "code",
        help="its first epoch has all candidates (code), or is one step on (paper)",
        rule=one_of("code", "paper"),
        when=_R2NS,
    )
    form: str = _key(
        "corrected",
        help="published: met items stay among the global candidates, and doubles count twice",
        rule=one_of("corrected", "published"),
        when=_R2NS,
    )
