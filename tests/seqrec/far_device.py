"""A device on the CPU that the host cannot see into, to learn what a GPU could not capture.

A CUDA graph replays kernels with the arguments they were captured with.  So a step can be captured
when, between its first and its last operator, the host reads nothing of the device, no shape
depends on data, nothing is copied from the host, and every argument that is no tensor is the same
in every step.  On a machine without a GPU all tensors are on the CPU and none of this shows.

Here it does.  `FAR` is a device of its own to torch (its PrivateUse1 backend), a :class:`Far`
tensor wraps a CPU tensor that holds its numbers, and under a :class:`FarDevice` operators on them
are computed by the CPU's.  Inside :meth:`FarDevice.region` each operator is written down with the
shapes and the numbers it was called with, and what a capture would not allow is written down as a
violation.  The operators of `seqrec_kernels` are opened: what they do inside is watched too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# tagged for what it does in general; with these arguments its shape is known
_KNOWN_SHAPE = {"aten.index.Tensor", "aten.repeat_interleave.Tensor"}


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


FAR = "far:0"


def _no_way_in(*arguments: Any, **names: Any) -> Tensor:
    raise RuntimeError("torch.tensor(..., device=FAR) copies from the host")


# Autograd asks one kind of device for its streams: beside a GPU, it would ask this one from now on.
# It counts devices at its first backward, so this cannot wait until it is needed; and other parts
# of torch (opcheck, torch.compile) then ask this device too. So it wants a process of its own.
BESIDE_A_GPU = torch.cuda.is_available()
if not BESIDE_A_GPU:
    if os.environ.get("SEQREC_FAR_DEVICE") != "1":
        pytest.skip(
            "test_far_process.py runs this in a process of its own", allow_module_level=True
        )
    _setup_privateuseone_for_python_backend("far", backend_module=_Backend())
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("empty_strided", _no_way_in, "PrivateUse1")


class Far(Tensor):
    """A tensor on `FAR`; `numbers` is the CPU tensor it stands for, for tests to look at."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Far:
        wrapped: Far = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=FAR,
        )
        wrapped.numbers = numbers
        return wrapped

    __repr__ = object.__repr__  # torch's would read the numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a Far tensor outside a FarDevice")


@dataclass
class Region:
    """What happened inside a region, in order.

    Attributes:
        operators: each with the shapes and dtypes of its tensors and all its other arguments.
        violations: what a capture would not allow.
    """

    operators: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class FarDevice(TorchDispatchMode):
    """Entered, tensors can be made on `FAR` and moved there, and operators run on them.

    Args:
        closed: operators of `seqrec_kernels` that are not opened, "seqrec_kernels::NAME": where
            a GPU runs compiled code and not what would be found inside here.
    """

    def __init__(self, closed: Collection[str] = ()) -> None:
        if BESIDE_A_GPU:
            pytest.skip("beside a GPU, a device of our own would take its place in autograd")
        super().__init__()
        self._closed = closed
        self._region: Region | None = None

    @contextlib.contextmanager
    def region(self) -> Iterator[Region]:
        """What is done inside is what a CUDA graph would capture."""
        self._region = found = Region()
        try:
            yield found
        finally:
            self._region = None

    def launch(self, kernel: str, *arguments: Any) -> None:
        """Write down a kernel that something other than torch launches on `FAR`."""
        if self._region is not None:
            self._region.operators.append(f"{kernel}{_described(arguments)}")
            given = [x for x in tree_leaves(arguments) if isinstance(x, Tensor)]
            if not all(isinstance(x, Far) for x in given):
                self._region.violations.append(f"{kernel} takes a tensor of the host")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._region is not None and func.namespace != "profiler":
            self._region.operators.append(f"{func}{_described((args, kwargs))}")
            if reason := _violation(func, args, kwargs):
                self._region.violations.append(reason)
        if func.namespace == "seqrec_kernels" and func._schema.name not in self._closed:
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        device = kwargs.get("device")
        far = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Far)]
        if device is not None:
            device = torch.device(device)
            kwargs = kwargs | {"device": torch.device("cpu") if device.type == "far" else device}
        near_args, near_kwargs = tree_map_only(Far, lambda x: x.numbers, (args, kwargs))
        out = func(*near_args, **near_kwargs)
        if not _lands_far(func, far, device):
            return out
        known = {id(x.numbers): x for x in far}
        out = tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else Far(x), out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _lands_far(func: Any, far: list[Far], device: torch.device | None) -> bool:
    """Whether the results are on `FAR`: where asked for, else where the arguments are."""
    if device is not None:
        return device.type == "far"
    if str(func) == "aten.copy_.default":
        return True  # in place: what it returns is known as what it is
    return bool(far)


def _violation(func: Any, args: Any, kwargs: Any) -> str | None:
    """Why a capture would fail at this call, or replay something else; None where it would not."""
    name = str(func)
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    near = len(far) < len(tensors)
    if any(isinstance(x, torch.Generator) for x in leaves):
        return f"{name} draws from a generator"
    if torch.Tag.nondeterministic_seeded in func.tags and not name.startswith("seqrec"):
        return f"{name} draws from the global generator"
    if device is not None and tensors and (device.type == "far") == near:
        return f"{name} copies between host and device"
    if far and near:
        return f"{name} takes tensors of host and device"
    if not far and (device is None or device.type != "far"):
        return f"{name} works on the host"
    if not any(tag in func.tags for tag in _TAGS):
        return None
    if name in _KNOWN_SHAPE and _shape_is_known(name, args, kwargs):
        return None
    return f"{name} waits for the device"


def _shape_is_known(name: str, args: Any, kwargs: Any) -> bool:
    if name == "aten.repeat_interleave.Tensor":
        return kwargs.get("output_size") is not None
    return all(x is None or x.dtype not in (torch.bool, torch.uint8) for x in args[1])


def _described(value: Any) -> str:
    """Everything of a call that a graph freezes: shapes, and all that is no tensor."""
    if isinstance(value, Tensor):
        where = "far" if isinstance(value, Far) else "near"
        return f"{where} {value.dtype} {tuple(value.shape)} {value.stride()}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{k}={_described(v)}' for k, v in value.items())})"
    return repr(value)
