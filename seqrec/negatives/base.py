"""What a method with a sampled loss asks of whoever draws its negatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from seqrec.negatives.histories import Histories, Rows
from seqrec.negatives.settings import NegativesConfig


@dataclass(frozen=True)
class Question:
    """M targets that need negatives.

    Attributes:
        queries: [M, D], as the loss takes them (under this step's dropout), without gradient.
        items: [R, D], the item table as it is now, without gradient.
        positives: int64 [M], rows of `items`; -1 in the tail of a captured step's batch, whose
            rows mean nothing and get negatives all the same.
        rows: what the targets' users have met.
        epoch: from 0; a captured step has a tensor, int64, 0-d.
        seed: of this very step, likewise; all that is drawn is a function of it.
    """

    queries: Tensor
    items: Tensor
    positives: Tensor
    rows: Rows
    epoch: int | Tensor
    seed: int | Tensor


class Sampler(nn.Module, ABC):
    """Draws negatives on the training device, without waiting for it.

    What a sampler remembers from step to step (a pool for every target, by `Rows.places`) stands in
    buffers, which the states of a run save and its model does not; tables that follow from the
    histories are plain attributes.  Both are made in :meth:`prepare`.

    Args:
        settings: the `[negatives]` table.
        warmup_epochs: epochs before this sampler is first asked.
    """

    def __init__(self, settings: NegativesConfig, warmup_epochs: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.warmup_epochs = warmup_epochs

    def prepare(self, histories: Histories) -> None:
        """Called once before training, also before a resumed one; nothing, unless overridden."""

    @abstractmethod
    def draw(self, question: Question) -> Tensor:
        """int64 [M, `count`], rows of the item table; -1 where there is none.

        No row is among what :meth:`Histories.rows` calls seen, unless the sampler says otherwise.
        """

    def classes(self, items: Tensor, question: Question, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The table and the ids that the loss takes for what was drawn.

        They are the items' table and the drawn ids themselves, unless overridden: a sampler whose
        negatives are no items appends a row of its own for each.

        Args:
            items: [R, D], with a gradient.
            question: what was answered.
            drawn: int64 [M, `count`].
        """
        return items, drawn

    def log_q(self) -> Tensor | None:
        """float32 [R], the log of each row's chance, or None: all alike, or it is not known."""
        return None

    def facts(self, epoch: int) -> dict[str, int | float]:
        """What the run's log says of an epoch (from 0); nothing, unless overridden."""
        return {}


def step_seeds(seed: int | Tensor, count: int) -> list[int | Tensor]:
    """`count` seeds of one step, for draws that must not share numbers."""
    return [(seed + turn) & (2**63 - 1) for turn in range(count)]
