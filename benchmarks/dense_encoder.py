"""The published Transformers over item sequences: padded to the full length, explicit, dense.

Both encoders that the methods are trained with, from the formulas of the papers and of the code
they came with, on the weights of ours.  Every sequence fills `max_length` slots, attention is a
matrix of scores under an additive mask, and all slots go through all layers, whichever of them are
read.  In float64 this is what the tests hold our encoders against, in float32 what they are timed
against.  Where torch has a fused operator for a formula (embedding, layer norm, GELU) it is used,
which favours this side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.encoders.base import Encoder
from seqrec.settings import EncoderConfig

Rows = Sequence[Sequence[int]]  # item rows of each sequence, oldest first

_MASKED = -10000.0  # what the published code adds to a score that does not count


class DenseEncoder:
    """SASRec's pre-norm Transformer, or the post-norm one of the S3-Rec line of work.

    The post-norm one counts places from the end, so its sequences are padded on the left; the
    pre-norm one counts them from the start and is padded on the right.

    Args:
        encoder: of which the weights are copied.
        config: says which Transformer it is.
        dtype: of the copies.

    Attributes:
        weights: leaves with gradients, by the names they have in `encoder`.
    """

    def __init__(self, encoder: Encoder, config: EncoderConfig, dtype: torch.dtype) -> None:
        self.weights = {
            name: x.detach().to(dtype, copy=True).requires_grad_()
            for name, x in encoder.named_parameters()
        }
        self.config = config
        self.post = config.name == "sasrec-postnorm"
        self.eps = 1e-12 if self.post else 1e-5

    @property
    def table(self) -> Tensor:
        """[V, D], items and extra rows."""
        return self.weights["table"]

    def last(self, rows: Rows) -> Tensor:
        """The output at the last item of each sequence: [B, D]."""
        x = self._encoded(*self._padded(rows))
        if self.post:
            return x[:, -1]
        ends = torch.tensor([len(row) - 1 for row in rows], device=x.device)
        return x[torch.arange(len(rows), device=x.device), ends]

    def everywhere(self, rows: Rows) -> Tensor:
        """The output at every item, [N, D], sequence after sequence."""
        padded, real = self._padded(rows)
        return self._encoded(padded, real)[real]

    def _padded(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Item rows int64 [B, L], row 0 as padding, which no item sees; and where there is none."""
        length, device = self.config.max_length, self.table.device
        empty = [[0] * (length - len(row)) for row in rows]
        pairs = list(zip(empty, rows, strict=True))
        padded = [[*pad, *row] if self.post else [*row, *pad] for pad, row in pairs]
        place = torch.arange(length, device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
        real = place >= length - lengths if self.post else place < lengths
        return torch.tensor(padded, device=device), real

    def _encoded(self, padded: Tensor, real: Tensor) -> Tensor:
        length, p = padded.shape[1], self.config.dropout
        causal = torch.ones(length, length, dtype=torch.bool, device=padded.device).tril()
        mask = torch.where(causal & real[:, None], 0.0, _MASKED)[:, None]
        x = F.embedding(padded, self.table)
        layer = self._post_norm if self.post else self._pre_norm
        if self.post:
            x = self._norm(x + self.weights["places"], "norm")
        else:
            x = math.sqrt(x.shape[2]) * x + self.weights["places"]
        x = F.dropout(x, p)
        for number in range(self.config.layers):
            x = layer(x, mask, f"layers.{number}")
        return x if self.post else self._norm(x, "norm")

    def _post_norm(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        p = self.config.dropout
        mixed = F.dropout(self._attended(x, mask, name), p)
        x = self._norm(x + mixed, f"{name}.attention_norm")
        inner = F.gelu(self._linear(x, f"{name}.first"))
        inner = F.dropout(self._linear(inner, f"{name}.second"), p)
        return self._norm(x + inner, f"{name}.feed_forward_norm")

    def _pre_norm(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        p = self.config.dropout
        normed = self._norm(x, f"{name}.attention_norm")
        x = x + F.dropout(self._attended(normed, mask, name), p)
        inner = self._norm(x, f"{name}.feed_forward_norm")
        inner = F.dropout(F.relu(self._linear(inner, f"{name}.feed_forward.first")), p)
        return x + F.dropout(self._linear(inner, f"{name}.feed_forward.second"), p)

    def _attended(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        """[B, L, D], projected; `mask` [B, 1, L, L] is added to the scores."""
        rows, length, dim = x.shape
        heads, p = self.config.heads, self.config.dropout
        q, k, v = (
            part.view(rows, length, heads, -1).transpose(1, 2)
            for part in self._linear(x, f"{name}.attention.input").split(dim, -1)
        )
        scores = q @ k.mT / math.sqrt(dim // heads) + mask
        mixed = (F.dropout(scores.softmax(-1), p) @ v).transpose(1, 2).flatten(2)
        return self._linear(mixed, f"{name}.attention.output")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], self.eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
