"""The tables of a configuration that all methods share; the others stand beside what reads them.

`[method]` is in `seqrec/methods/settings.py`, `[negatives]` in `seqrec/negatives/settings.py`;
:class:`~seqrec.config.Config` puts them together.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from seqrec.encoders import ENCODERS
from seqrec.keys import Rule, above, at_least, empty, key, one_of, within

METRICS = ("HR", "NDCG", "MRR")

_CUTOFFS = Rule(
    "at least one, positive and increasing",
    lambda ks: bool(ks) and ks[0] > 0 and all(a < b for a, b in itertools.pairwise(ks)),
)
_METRIC = Rule(
    f"METRIC@K with METRIC one of {', '.join(METRICS)}",
    lambda name: re.fullmatch(rf"({'|'.join(METRICS)})@[1-9][0-9]*", name) is not None,
)
_BY_USER = {"data.split": one_of("by-user")}


@dataclass(frozen=True)
class DataConfig:
    """The log and what is made of it."""

    path: str = key(help="the interaction log, or synthetic[:users=..,items=..,groups=..,seed=..]")
    split: str = key(
        "leave-one-out",
        help="what is held out",
        rule=one_of("leave-one-out", "by-user", "global-time"),
    )
    split_seed: int = key(
        0,
        help="draws the users that by-user holds out",
        rule=within(0, 2**63),
        when=_BY_USER | {"data.roles": empty},
    )
    roles: str = key(
        "", help="a file of `user role` for by-user, instead of drawing the users", when=_BY_USER
    )
    format: str = key(
        "auto",
        help="how the file is read",
        rule=one_of("auto", "lines", "pairs", "inter", "csv", "parquet"),
    )
    min_user: int = key(0, help="drop users with fewer events, iteratively", rule=at_least(0))
    min_item: int = key(0, help="drop items with fewer events, iteratively", rule=at_least(0))
    repeats: str = key(
        "keep",
        help="a user's repeated events of one item",
        rule=one_of("keep", "first", "adjacent"),
    )
    sha256: str = key("", help="of the log as trained on; written by seqrec")
    roles_sha256: str = key("", help="of the file of roles; written by seqrec")


@dataclass(frozen=True)
class EncoderConfig:
    """What turns a history into a query."""

    name: str = key("sasrec", help="the encoder", rule=one_of(*ENCODERS))
    dim: int = key(128, help="width; a multiple of heads", rule=at_least(1))
    layers: int = key(1, help="transformer blocks", rule=at_least(1))
    heads: int = key(2, help="attention heads", rule=at_least(1))
    dropout: float = key(0.4, help="share of activations dropped in training", rule=within(0, 1))
    max_length: int = key(50, help="latest events of a history that are read", rule=at_least(1))
    extra_rows: int = key(
        0,
        help="rows of the table that are no items, classes of the loss all the same",
        rule=at_least(0),
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    epochs: int = key(200, help="at most this many", rule=at_least(1))
    batch: int = key(256, help="training rows a step", rule=at_least(1))
    lr: float = key(2e-3, help="Adam's step size", rule=above(0))
    patience: int = key(10, help="epochs without a better validation", rule=at_least(1))
    seed: int = key(0, help="of everything random in the run", rule=within(0, 2**63))
    clip_norm: float = key(5.0, help="largest gradient norm; 0: no clipping", rule=at_least(0))
    weight_decay: float = key(0.0, help="AdamW's; 0: plain Adam", rule=at_least(0))
    precision: str = key(
        "float32",
        help="of the products of a step; weights, sums and evaluation are float32 in any case",
        rule=one_of("float32", "bfloat16"),
    )
    max_steps: int = key(0, help="stop after this many steps; 0: no limit", rule=at_least(0))
    device: str = key("auto", help="where to train", rule=one_of("auto", "cpu", "cuda"))
    capture: str = key(
        "auto",
        help="on CUDA replay the step as one graph where the method can; fixed: the same step in "
        "fixed shapes without a graph, on any device; off: neither",
        rule=one_of("auto", "fixed", "off"),
    )
    save_every: float = key(60.0, help="seconds between saved states", rule=at_least(0))


@dataclass(frozen=True)
class EvaluationConfig:
    """The protocol of the figures."""

    seen: str = key(
        "exclude",
        help="items of the input: no candidates, candidates, or scored 0",
        rule=one_of("exclude", "include", "zero"),
    )
    ties: str = key(
        "mean",
        help="how equal scores count",
        rule=one_of("mean", "optimistic", "pessimistic"),
    )
    ks: tuple[int, ...] = key((5, 10, 20), help="list lengths of HR, NDCG and MRR", rule=_CUTOFFS)
    select: str = key("NDCG@10", help="validation metric that chooses the epoch", rule=_METRIC)
    batch: int = key(1024, help="users scored at once", rule=at_least(1))


@dataclass(frozen=True)
class PresetConfig:
    """Which preset a run was started from; written by seqrec, heads a preset's own file."""

    name: str = key("", help="the preset's name")
    data: str = key("", help="the data set it is for")
    sha256: str = key("", help="of that data set's file")
