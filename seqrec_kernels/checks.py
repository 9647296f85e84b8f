"""Argument checks and the question how a call reaches its implementation.

Shapes, dtypes, devices and Python numbers are checked on every call: ``TypeError`` or
``ValueError`` naming argument and value. Values of ids and offsets (``IndexError``) are read where
that costs nothing, on the CPU in eager mode; ``SEQREC_CHECK_IDS=1`` reads them on other devices and
inside compiled graphs too, which waits for the device. A stream capture is never interrupted.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqrec_kernels.types import SeenItems, csr_places

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")

_check_ids_everywhere = os.environ.get("SEQREC_CHECK_IDS", "") not in ("", "0")


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


# ---- how a call runs -----------------------------------------------------------------------------


def direct(*tensors: Tensor | None) -> bool:
    """Whether a call may skip torch's dispatcher (it costs more than a small operator).

    It may in plain eager mode: nothing is being compiled, no dispatch or function mode watches, no
    function transform (``torch.func``) is open and no argument is a tensor subclass, or on "meta".
    """
    if torch.compiler.is_compiling():
        return False
    if _get_current_dispatch_mode() is not None or _get_current_function_mode() is not None:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    plain = (Tensor, torch.nn.Parameter)
    return all(t is None or (type(t) in plain and not t.is_meta) for t in tensors)


def plain_backward_only(operator: str, *tensors: Tensor | None) -> None:
    """Refuses forward-mode derivatives, which would be dropped unsaid, and ``torch.func``."""
    if torch.compiler.is_compiling():
        return
    there = [t for t in tensors if t is not None]
    dual = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in there if t.is_floating_point()
    )
    wrapped = torch._C._functorch.peek_interpreter_stack() is not None and any(
        map(torch._C._functorch.is_functorch_wrapped_tensor, there)
    )
    if dual or wrapped:
        raise RuntimeError(
            f"{operator} has neither forward-mode derivatives nor torch.func transforms here; "
            'compute it under seqrec_kernels.backend("reference"), which has'
        )


def _reads_values(*tensors: Tensor) -> bool:
    """Whether the host may look into id tensors now."""
    if torch.compiler.is_compiling():
        return False
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return False  # a fake tensor has no values
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return False  # a batch of vmap has none either
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return False  # make_fx: a look would be frozen into its graph
    kind = tensors[0].device.type
    if kind == "cpu":
        return True
    if kind == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    return _check_ids_everywhere and kind != "meta"


def _raise_ids(name: str, ids: Tensor, low: int, high: int, empty: bool) -> None:
    """IndexError with the first id outside [low, high); ``empty`` lets -1 pass."""
    if not ids.numel():
        return
    least, greatest = ids.aminmax()  # one pass, where nothing is wrong
    if greatest < high and (least >= low or (empty and low == 0 and least == -1)):
        return
    wrong = (ids < low) | (ids >= high)
    if empty:
        wrong &= ids != -1
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        value = int(ids[tuple(place)])
        also = " or -1" if empty else ""
        raise IndexError(f"{name}{place} is {value}; it must be in [{low}, {high}){also}")


def _raise_offsets(name: str, offsets: Tensor, most: int, hold: str, longest: int = -1) -> None:
    """IndexError for offsets of something that holds ``most``, of pieces of at most ``longest``."""
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or bool((lengths < 0).any()):
        raise IndexError(f"{name} must start at 0 and never fall")
    if int(offsets[-1]) > most:
        raise IndexError(f"{name} end at {int(offsets[-1])} but {hold} {most}")
    if longest >= 0 and lengths.numel() and int(lengths.max()) > longest:
        raise IndexError(f"{name} hold a length of {int(lengths.max())}, above {longest}")


def _raise_seen(name: str, offsets: Tensor, ids: Tensor, rows: Tensor | None, items: int) -> None:
    """IndexError for a CSR that points outside itself or the item table.

    All offsets and rows are read; of the ids those of the rows in use, so that a batch of a large
    data set costs what the batch holds.
    """
    _raise_offsets(f"{name}.offsets", offsets, ids.shape[0], f"{name}.ids hold")
    if rows is None:
        used = ids[: int(offsets[-1])]
    else:
        _raise_ids(f"{name}.rows", rows, 0, offsets.shape[0] - 1, empty=False)
        used = ids[csr_places(offsets[rows], offsets[rows + 1] - offsets[rows])[1]]
    _raise_ids(f"{name}.ids", used, 0, items, empty=False)


@torch.library.custom_op("seqrec_kernels::checked_ids", mutates_args=())
def _checked_ids(name: str, ids: Tensor, low: int, high: int, empty: bool) -> Tensor:
    """The check inside a compiled graph; the copy it returns keeps it from being removed."""
    if not (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
        _raise_ids(name, ids, low, high, empty)
    return ids.clone()


@_checked_ids.register_fake
def _(name: str, ids: Tensor, low: int, high: int, empty: bool) -> Tensor:
    return torch.empty_like(ids)


@torch.library.custom_op("seqrec_kernels::checked_seen", mutates_args=())
def _checked_seen(
    name: str, offsets: Tensor, ids: Tensor, rows: Tensor | None, items: int
) -> Tensor:
    if not (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
        _raise_seen(name, offsets, ids, rows, items)
    return ids.clone()


@_checked_seen.register_fake
def _(name: str, offsets: Tensor, ids: Tensor, rows: Tensor | None, items: int) -> Tensor:
    return torch.empty_like(ids)


@torch.library.custom_op("seqrec_kernels::checked_offsets", mutates_args=())
def _checked_offsets(name: str, offsets: Tensor, most: int, hold: str, longest: int) -> Tensor:
    if not (offsets.is_cuda and torch.cuda.is_current_stream_capturing()):
        _raise_offsets(name, offsets, most, hold, longest)
    return offsets.clone()


@_checked_offsets.register_fake
def _(name: str, offsets: Tensor, most: int, hold: str, longest: int) -> Tensor:
    return torch.empty_like(offsets)


def offset_values(name: str, offsets: Tensor, most: int, hold: str, longest: int = -1) -> Tensor:
    """``offsets``, after a look at their values where the host may have one.

    Args:
        most: how many rows there are, which ``hold`` says in the error: "keys have".
        longest: what no length may be above; -1: anything may be.

    Raises:
        IndexError: they fall, do not start at 0, end behind ``most``, or a length is too long.
    """
    if _reads_values(offsets):
        _raise_offsets(name, offsets, most, hold, longest)
    elif _check_ids_everywhere and torch.compiler.is_compiling():
        return _checked_offsets(name, offsets, most, hold, longest)
    return offsets


def id_values(name: str, ids: Tensor, low: int, high: int, empty: bool = True) -> Tensor:
    """``ids``, after a look at their values where the host may have one.

    Raises:
        IndexError: an id outside ``[low, high)``, -1 excepted where ``empty`` allows it.
    """
    if _reads_values(ids):
        _raise_ids(name, ids, low, high, empty)
    elif _check_ids_everywhere and torch.compiler.is_compiling():
        return _checked_ids(name, ids, low, high, empty)
    return ids


def seen_values(seen: SeenItems | None, items: int, name: str = "seen") -> SeenItems | None:
    """``seen``, after a look at its values where the host may have one.

    Raises:
        IndexError: offsets that fall or leave ``ids``, rows or ids out of range.
    """
    if seen is None:
        return None
    if _reads_values(*(part for part in seen if part is not None)):
        _raise_seen(name, *seen, items)
    elif _check_ids_everywhere and torch.compiler.is_compiling():
        return seen._replace(ids=_checked_seen(name, *seen, items))
    return seen


# ---- precision -----------------------------------------------------------------------------------


def autocast(**values: object) -> dict[str, Tensor]:
    """The matrices as ``torch.mm`` would get them under the autocast in force, if any."""
    found = {name: tensor(name, value) for name, value in values.items()}
    kind = next(iter(found.values())).device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return found
    dtype = torch.get_autocast_dtype(kind)
    narrow = FLOATS[:3]  # float64 stays, and what is no float is for the caller to refuse
    return {name: t.to(dtype) if t.dtype in narrow else t for name, t in found.items()}


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Products inside choose their own precision, whatever autocast is in force outside."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
