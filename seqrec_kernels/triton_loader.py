"""When triton kernels can run, without importing triton, and their import at first use.

Importing triton takes a good part of a second and, in some versions, asks for a driver, so it waits
for the first launch. What dispatch, tests' skips and ``doctor`` need before that is here.
"""

from __future__ import annotations

import os
from importlib import import_module, util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# read once: triton itself looks at the variable when it is imported
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
_installed = util.find_spec("triton") is not None


def unsupported(queries: Tensor, items: Tensor) -> str | None:
    """Predicate of the triton paths: None where they run, else why not.

    Under ``TRITON_INTERPRET=1`` (triton's own switch: kernels run as numpy programs, very slowly)
    they run on the CPU too.
    """
    if queries.dtype == torch.float64:
        return "float64 runs the reference"
    if not _installed:
        return "triton is not installed"
    if queries.shape[1] == 0:
        return "rows of width 0 have no product"
    if INTERPRETED:
        return None
    if queries.device.type != "cuda":
        return f"queries are on {queries.device.type}"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs"
    chip = torch.cuda.get_device_properties(queries.device)
    if chip.major < 8:
        return f"compute capability {chip.major}.{chip.minor} is below 8.0"
    return None


class TritonKernels(ModuleType):
    """A family's ``triton_kernels`` module, imported when something of it is first asked for."""

    def __init__(self, family: str) -> None:
        super().__init__(f"seqrec_kernels.ops.{family}.triton_kernels")
        self.unsupported = unsupported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspection asks of any module must not import triton
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)
