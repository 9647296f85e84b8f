"""Checks of the values of ids and offsets, wherever reading them costs nothing.

A value out of range is an ``IndexError``. The host reads values on the CPU in eager mode;
``SEQREC_CHECK_IDS=1`` makes it read them on other devices and inside compiled graphs too, which
waits for the device. A stream capture is never interrupted. Where nobody reads, no kernel
dereferences an id out of its range, and the row it stands in comes back as NaN or -1.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from seqrec_kernels.types import SeenItems, csr_places

_check_ids_everywhere = os.environ.get("SEQREC_CHECK_IDS", "") not in ("", "0")


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
