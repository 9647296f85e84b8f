"""What the methods ask of an encoder, and what every Transformer over items has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from seqrec.data.store import Sequences
from seqrec.draws import Randomness
from seqrec.encoders.layout import Layout
from seqrec.settings import EncoderConfig


class TransformerLayer(nn.Module, ABC):
    """One layer; both ways of calling it are the same function of the same weights."""

    @abstractmethod
    def forward(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [N, D], all tokens."""

    @abstractmethod
    def last(self, x: Tensor, layout: Layout, generator: Randomness | None) -> Tensor:
        """[N, D] -> [B, D], each sequence's last token; the others serve as keys and values."""


class Encoder(nn.Module, ABC):
    """Encodes each place of each sequence by the items up to and including it.

    A subclass says how tokens are embedded, which layers follow and what is done to the output of
    the last.  The scores of all items are the products of an output with :attr:`items`.

    Args:
        n_items: N, items of the catalogue.
        config: width, layers, heads, dropout, the longest input and the extra rows of the table.

    Attributes:
        table: [N + extra rows, D].  The first N rows are the items.  The others stand for no item:
            they are classes of a training softmax over the table (published code has a padding
            and a mask row there), and never candidates of a ranking.
        places: [max_length, D], the learned positions.
        layers: the Transformer.
    """

    layers: nn.ModuleList

    def __init__(self, n_items: int, config: EncoderConfig) -> None:
        super().__init__()
        self.n_items = n_items
        self.dropout = config.dropout
        self.table = nn.Parameter(torch.empty(n_items + config.extra_rows, config.dim))
        self.places = nn.Parameter(torch.empty(config.max_length, config.dim))

    @property
    def items(self) -> Tensor:
        """[N, D], the rows of the table that are items."""
        return self.table[: self.n_items]

    def forward(self, batch: Sequences, generator: Randomness | None = None) -> Tensor:
        """Hidden states of all tokens.

        Args:
            batch: B sequences with T tokens in all, each of 1 to `max_length` items.
            generator: draws the dropout masks; None switches dropout off.

        Returns:
            [T, D], in the batch's token order.
        """
        layout = Layout(batch)
        x = self._embed(batch, generator)
        for layer in self.layers:
            x = layer(x, layout, generator)
        return self._finish(x)

    def last(self, batch: Sequences, generator: Randomness | None = None) -> Tensor:
        """Hidden state of each sequence's last token, [B, D].

        Exactly the rows ``batch.last()`` of :meth:`forward` without dropout, and the same in
        distribution with it (fewer masks are drawn); arguments as there.  The last layer computes
        keys and values for all tokens and everything else for one token a sequence.
        """
        layout = Layout(batch)
        x = self._embed(batch, generator)
        for layer in self.layers[:-1]:
            x = layer(x, layout, generator)
        final = self.layers[-1]
        assert isinstance(final, TransformerLayer)
        return self._finish(final.last(x, layout, generator))

    @abstractmethod
    def _embed(self, batch: Sequences, generator: Randomness | None) -> Tensor:
        """[T, D], the input of the first layer."""

    def _finish(self, x: Tensor) -> Tensor:
        """What stands between the last layer and the output."""
        return x
