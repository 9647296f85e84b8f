"""Argument checks: tensors by shape, dtype and device, and Python numbers.

They stand in every call: ``TypeError`` or ``ValueError`` naming argument and value. What ids and
offsets hold is checked in :mod:`seqrec_kernels.id_checks`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec_kernels.types import SeenItems

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


# ---- tensors -------------------------------------------------------------------------------------


def tensor(name: str, value: object) -> Tensor:
    """``value`` as the dense tensor it has to be."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    # by name: asking torch.distributed for its class would import it
    if type(value).__name__ == "DTensor":
        raise TypeError(f"{name} is a DTensor; pass the local tensor, or gather it first")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not {value.layout}")
    return value


def matrices(**values: object) -> list[Tensor]:
    """The operands of score products: ``[rows, D]``, all of one dtype, device and width."""
    found = [(name, tensor(name, value)) for name, value in values.items()]
    for name, value in found:
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{name} must be float32, bfloat16, float16 or float64, not {value.dtype}"
            )
        if value.dim() != 2:
            raise ValueError(f"{name} must have two dimensions, not shape {tuple(value.shape)}")
    first, q = found[0]
    for name, e in found[1:]:
        if q.dtype != e.dtype:
            raise TypeError(
                f"{first} are {q.dtype} but {name} are {e.dtype}; they must share one dtype"
            )
        same_device(name, e, q, first)
        if q.shape[1] != e.shape[1]:
            raise ValueError(
                f"{first} have width {q.shape[1]} but {name} have width {e.shape[1]}; "
                "they must be equal"
            )
    return [value for _, value in found]


def same_device(name: str, value: Tensor, queries: Tensor, beside: str = "queries") -> None:
    if value.device != queries.device:
        raise ValueError(f"{name} is on {value.device} but {beside} are on {queries.device}")


def int64(name: str, value: object, queries: Tensor, beside: str = "queries") -> Tensor:
    """An id tensor on the device of ``queries``, which the caller knows as ``beside``."""
    ids = tensor(name, value)
    if ids.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, not {ids.dtype}")
    same_device(name, ids, queries, beside)
    return ids


def targets(value: object, queries: Tensor) -> Tensor:
    """Targets ``[M]`` or ``[M, T]`` of ``M`` queries."""
    ids = int64("targets", value, queries)
    if ids.dim() not in (1, 2) or ids.shape[0] != queries.shape[0]:
        rows = queries.shape[0]
        raise ValueError(f"targets must be [{rows}] or [{rows}, T], not {tuple(ids.shape)}")
    return ids


def item_bias(value: object, queries: Tensor, items: Tensor) -> Tensor | None:
    """A bias a row of ``items``: float32 ``[V]``, float64 beside float64 queries."""
    return item_vector("item_bias", value, queries, items)


def item_vector(name: str, value: object, queries: Tensor, items: Tensor) -> Tensor | None:
    """A number a row of ``items``, as ``item_bias`` is."""
    if value is None:
        return None
    vector = tensor(name, value)
    expected = torch.float64 if queries.dtype == torch.float64 else torch.float32
    if vector.dtype != expected:
        raise TypeError(
            f"{name} must be {expected} beside queries of {queries.dtype}, not {vector.dtype}"
        )
    if vector.shape != (items.shape[0],):
        raise ValueError(f"{name} must be [{items.shape[0]}], not {tuple(vector.shape)}")
    same_device(name, vector, queries)
    return vector


def seen_items(value: object, queries: Tensor, name: str = "seen") -> SeenItems | None:
    """Shapes and dtypes of a ``SeenItems`` for the rows of ``queries``."""
    if value is None:
        return None
    if not isinstance(value, SeenItems):
        raise TypeError(f"{name} must be a SeenItems, not {type(value).__name__}")
    offsets = int64(f"{name}.offsets", value.offsets, queries)
    ids = int64(f"{name}.ids", value.ids, queries)
    for which, part in (("offsets", offsets), ("ids", ids)):
        if part.dim() != 1:
            shape = tuple(part.shape)
            raise ValueError(f"{name}.{which} must have one dimension, not shape {shape}")
    if offsets.shape[0] < 1:
        raise ValueError(f"{name}.offsets is empty; it must hold U + 1 numbers")
    users, batch = offsets.shape[0] - 1, queries.shape[0]
    if value.rows is None:
        if users != batch:
            raise ValueError(
                f"{name} holds {users} rows but queries {batch}; "
                f"give {name}.rows or one row a query"
            )
        return value
    rows = int64(f"{name}.rows", value.rows, queries)
    if rows.shape != (batch,):
        raise ValueError(f"{name}.rows must be [{batch}], not {tuple(rows.shape)}")
    return value


# ---- Python numbers ------------------------------------------------------------------------------


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """A Python int in ``[low, high)``."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < low or (high is not None and value >= high):
        allowed = f"at least {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} is {value}; it must be {allowed}")
    return int(value)


def number(name: str, value: object) -> float:
    """A Python float that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be a float, not {type(value).__name__}")
    x = float(value)
    if x != x:  # math.isnan does not trace, once torch.compile has made a float symbolic
        raise ValueError(f"{name} is nan; it must be a number")
    return x


def positive(name: str, value: object) -> float:
    """A finite Python float above 0."""
    x = number(name, value)
    if not 0.0 < x < math.inf:
        raise ValueError(f"{name} is {value}; it must be above 0 and finite")
    return x


def temperature(value: object) -> float:
    """A finite Python float above 0."""
    return positive("temperature", value)


def within(name: str, value: object, low: float, high: float) -> float:
    """A finite Python float in ``[low, high]``."""
    x = number(name, value)
    if not low <= x <= high or abs(x) == math.inf:
        bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (
            high < math.inf
        )
        raise ValueError(f"{name} is {value}; it must be {' and '.join(['finite', *bounds])}")
    return x


def seed(value: object, queries: Tensor, beside: str = "queries") -> Tensor:
    """A seed as a 0-d int64 tensor on the device of ``queries``; nobody waits for it.

    Of a Python int the low 64 bits count; a tensor is taken as it is.
    """
    if isinstance(value, Tensor):
        found = int64("seed", value, queries, beside)
        if found.dim() != 0:
            raise ValueError(f"seed must have no dimension, not shape {tuple(found.shape)}")
        return found
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"seed must be an int or a 0-d int64 tensor, not {type(value).__name__}")
    seed = int(value)
    if not -(2**63) <= seed < 2**63:  # a traced int never is, and does not meet this arithmetic
        seed = (seed + 2**63) % 2**64 - 2**63
    return torch.full((), seed, dtype=torch.int64, device=queries.device)


def count(name: str, value: object, queries: Tensor) -> Tensor:
    """A Python int of at least 1, or a tensor, as a 0-d int64 tensor on the device of ``queries``.

    Nobody reads a tensor here: what fewer than 1 means is the operator's to say.
    """
    if isinstance(value, Tensor):
        found = int64(name, value, queries)
        if found.dim() != 0:
            raise ValueError(f"{name} must have no dimension, not shape {tuple(found.shape)}")
        return found
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int or a 0-d int64 tensor, not {type(value).__name__}")
    number = integer(name, value, 1, 2**63)
    return torch.full((), number, dtype=torch.int64, device=queries.device)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
    return str(value)
