"""How a call reaches its implementation: past torch's dispatcher or through it, in which precision.

Used by the families' public functions and by :mod:`seqrec_kernels.ops.registration`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqrec_kernels.checks import FLOATS, tensor


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
