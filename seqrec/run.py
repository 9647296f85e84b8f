"""A run directory as an object: its result, and the model asked for recommendations."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec import rundir
from seqrec.config import Config
from seqrec.data.log import InteractionLog, read_log
from seqrec.data.split import Jagged, Split, split_log
from seqrec.data.store import SequenceStore
from seqrec.errors import UsageError
from seqrec.evaluation.judge import judge, judge_rulers, metrics_of
from seqrec.evaluation.protocol import protocol_card
from seqrec.evaluation.ranking import TIE_RULES
from seqrec.evaluation.rulers import SEEN_RULES
from seqrec.methods.base import Method
from seqrec.settings import DataConfig
from seqrec.training.model_file import read_model
from seqrec_kernels import SeenItems, catalog_topk

Histories = Mapping[str, Sequence[str]] | Iterable[tuple[str, Sequence[str]]]

_CHUNK = 1024  # histories scored at a time


class Run:
    """A trained (or half-trained) run.

    Args:
        directory: its run directory.

    Raises:
        UsageError: there is no run, or its files are damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.config: Config = rundir.read_config(self.directory)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """What ``result.json`` holds.

        Raises:
            UsageError: the run is not finished.
        """
        path = self.directory / rundir.RESULT
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                "the run is not finished", str(path), f"`seqrec resume {self.directory}`"
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the result cannot be read: {error}",
                str(path),
                f"remove it; `seqrec resume {self.directory}` writes it again",
            ) from error
        return content

    @functools.cached_property
    def items(self) -> list[str]:
        """External item ids, row order."""
        return rundir.read_items(self.directory)

    @functools.cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.items)}

    @functools.cached_property
    def _model(self) -> tuple[Method, Tensor]:
        return read_model(self.directory, self.config, len(self.items), torch.device("cpu"))

    def recommend(
        self, histories: Histories, k: int = 10, *, include_seen: bool = False
    ) -> dict[str, list[tuple[str, float]]]:
        """The k best items for each history.

        Args:
            histories: ``{user: [items, oldest first]}``, or pairs of the two; any user names.
            k: how many; fewer come back where fewer are left.
            include_seen: also items of the history itself.

        Returns:
            ``{user: [(item, score), ...]}``, best first, ties by catalogue order.  Unknown items of
            a history are skipped; one without a known item gets the most popular items with their
            training counts as scores.

        Raises:
            UsageError: k < 1, or a history that is a text and no list.
        """
        return {
            row["user"]: list(zip(row["items"], row["scores"], strict=True))
            for row in self.recommend_rows(histories, k, include_seen=include_seen)
        }

    def recommend_rows(
        self, histories: Histories, k: int = 10, *, include_seen: bool = False
    ) -> Iterator[dict[str, Any]]:
        """As `recommend`, one JSON-ready object a history, in order, read lazily.

        ``unknown`` counts skipped items where there were any; ``fallback`` is "popularity" where
        no item of the history was known.
        """
        if k < 1:
            raise UsageError(f"k is {k}", "--k", "ask for at least 1 item")
        k = min(operator.index(k), len(self.items))  # numpy's integers are integers too
        pairs = histories.items() if isinstance(histories, Mapping) else histories
        chunk: list[tuple[str, Sequence[str]]] = []
        for user, items in pairs:
            if isinstance(items, str):
                raise UsageError(
                    f"the history of {user!r} is the text {items!r}", "", "give a list of item ids"
                )
            chunk.append((user, items))
            if len(chunk) == _CHUNK:
                yield from self._recommend_chunk(chunk, k, include_seen)
                chunk = []
        if chunk:
            yield from self._recommend_chunk(chunk, k, include_seen)

    @torch.no_grad()
    def _recommend_chunk(
        self, chunk: list[tuple[str, Sequence[str]]], k: int, include_seen: bool
    ) -> Iterator[dict[str, Any]]:
        method, _ = self._model
        known = [
            [self._item_rows[item] for item in map(str, items) if item in self._item_rows]
            for _, items in chunk
        ]
        answers: dict[int, tuple[list[int], list[float]]] = {}
        filled = [index for index, rows in enumerate(known) if rows]
        if filled:
            inputs = Jagged.from_lists([known[index] for index in filled])
            store = SequenceStore(inputs, torch.device("cpu"))
            batch = store.batch(np.arange(len(filled)), self.config.encoder.max_length)
            seen = SeenItems(torch.from_numpy(inputs.offsets), torch.from_numpy(inputs.values))
            top = catalog_topk(
                method.queries(batch), method.items(), k, seen=None if include_seen else seen
            )
            lists = zip(filled, top.ids.tolist(), top.scores.tolist(), strict=True)
            for index, ids, scores in lists:
                n = sum(i >= 0 for i in ids)
                answers[index] = ids[:n], scores[:n]
        for index, (user, items) in enumerate(chunk):
            rows, scores = answers[index] if index in answers else self._most_popular(k)
            row: dict[str, Any] = {
                "user": user,
                "items": [self.items[item] for item in rows],
                "scores": scores,
            }
            if len(known[index]) < len(items):
                row["unknown"] = len(items) - len(known[index])
            if index not in answers:
                row["fallback"] = "popularity"
            yield row

    @functools.cached_property
    def _by_popularity(self) -> Tensor:
        """Item rows by training count, most first, ties by catalogue order."""
        return torch.argsort(self._model[1], descending=True, stable=True)

    def _most_popular(self, k: int) -> tuple[list[int], list[float]]:
        rows = self._by_popularity[:k]
        return rows.tolist(), self._model[1][rows].double().tolist()

    def evaluate(self, *, seen: str | None = None, ties: str | None = None) -> dict[str, Any]:
        """The selected weights under another seen or tie rule; nothing is written.

        Returns:
            ``{"metrics": {"valid", "test"}, "protocol": {...}, "baselines": {...}}``.

        Raises:
            UsageError: no such rule; the data is gone or has changed.
        """
        for name, rule, known in (("seen", seen, SEEN_RULES), ("ties", ties, TIE_RULES)):
            if rule is not None and rule not in known:
                raise UsageError(f"{name} is {rule!r}", f"--{name}", f"one of {', '.join(known)}")
        log = load_log(self.config, self.directory)
        split = cut(log, self.config.data)
        card = protocol_card(self.config, split, seen=seen, ties=ties)
        method, _ = self._model
        ranks = judge(method, self.config, split, torch.device("cpu"), [card["seen"]])
        rulers = judge_rulers(split, card["seen"])
        return {
            "metrics": metrics_of(ranks[card["seen"]], self.config, card["ties"]),
            "protocol": card,
            "baselines": {
                name: metrics_of(found, self.config, card["ties"]) for name, found in rulers.items()
            },
        }


def read_data(data: DataConfig) -> InteractionLog:
    """The log a configuration names."""
    return read_log(
        data.path,
        format=data.format,
        min_user=data.min_user,
        min_item=data.min_item,
        repeats=data.repeats,
    )


def load_log(config: Config, directory: Path) -> InteractionLog:
    """The log of a run, with the bytes it had when the run began.

    Raises:
        UsageError: it cannot be read, or has changed.
    """
    kept = directory / rundir.INTERACTIONS
    if kept.exists():  # wherever the directory stands now
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, path=str(kept.absolute()))
        )
    log = read_data(config.data)
    if log.sha256 != config.data.sha256:
        raise UsageError(
            f"the data has changed: its sha256 is {log.sha256[:12]}..., the run was started on "
            f"{config.data.sha256[:12]}...",
            config.data.path,
            f"restore the file, or train anew with --out {directory} --overwrite",
        )
    return log


def cut(log: InteractionLog, data: DataConfig) -> Split:
    """The log split as the configuration says.

    Raises:
        UsageError: it cannot be, or the file of roles is not the one the run was started on.
    """
    split = split_log(log, data.split, data.split_seed, data.roles)
    found = str(split.drawn.get("roles_sha256", ""))
    if data.roles_sha256 and found != data.roles_sha256:
        raise UsageError(
            f"the roles have changed: their sha256 is {found[:12]}..., the run was started on "
            f"{data.roles_sha256[:12]}...",
            data.roles,
            "restore the file, or train anew",
        )
    return split
