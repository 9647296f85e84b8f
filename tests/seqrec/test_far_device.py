"""The device that shows what a graph could not capture sees each thing it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from far_device import FAR, Far, FarDevice
from little import SETTINGS, split
from torch import Tensor

from seqrec.config import load_config
from seqrec.data.store import SequenceStore
from seqrec.methods import build
from seqrec.methods.base import Step
from seqrec_kernels import philox


def far_tensors() -> tuple[Tensor, Tensor]:
    """Floats [4, 3] and ids [4] on the device."""
    return torch.arange(12.0).view(4, 3).to(FAR), torch.tensor([2, 0, 1, 1]).to(FAR)


def numbers(x: Tensor) -> Tensor:
    assert isinstance(x, Far)
    return x.numbers


Planted = Callable[[Tensor, Tensor], Any]
# each is something that waits for the device, depends on its data, or freezes what must change
PLANTED: dict[str, tuple[str, Planted]] = {
    "item": ("waits", lambda x, ids: x[0, 0].item()),
    "branch": ("waits", lambda x, ids: bool(x[0, 0] > 1)),
    "range": ("waits", lambda x, ids: range(int(ids[0]))),
    "equal": ("waits", lambda x, ids: torch.equal(x, x)),
    "nonzero": ("waits", lambda x, ids: x.nonzero()),
    "where": ("waits", lambda x, ids: torch.where(x > 3)),
    "mask": ("waits", lambda x, ids: x[x > 3]),
    "masked_select": ("waits", lambda x, ids: torch.masked_select(x, x > 3)),
    "unique": ("waits", lambda x, ids: torch.unique(ids)),
    "bincount": ("waits", lambda x, ids: torch.bincount(ids)),
    "repeat": ("waits", lambda x, ids: torch.repeat_interleave(x, ids, dim=0)),
    "to host": ("copies", lambda x, ids: x.cpu()),
    "from host": ("copies", lambda x, ids: torch.arange(3).to(FAR)),
    "into": ("host", lambda x, ids: x.copy_(torch.zeros(4, 3))),
    "beside": ("host and device", lambda x, ids: x * torch.tensor(2.0)),
    "on host": ("works on the host", lambda x, ids: torch.zeros(3) + 1),
    "generator": ("generator", lambda x, ids: x.normal_(generator=torch.Generator())),
    "global": ("global generator", lambda x, ids: torch.dropout(x, 0.5, True)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_cannot_be_captured_is_seen(name: str) -> None:
    expected, planted = PLANTED[name]
    with FarDevice() as far:
        x, ids = far_tensors()
        with far.region() as region:
            planted(x, ids)
    assert any(expected in violation for violation in region.violations), region.violations


@pytest.mark.parametrize(
    "read", [lambda x: x.numpy(), lambda x: x.tolist(), lambda x: torch.tensor(4.0, device=FAR)]
)
def test_what_cannot_even_be_done(read: Callable[[Tensor], Any]) -> None:
    with FarDevice():
        x, _ = far_tensors()
        with pytest.raises((RuntimeError, TypeError)):
            read(x)


def test_what_can_be_captured_is_let_through_with_the_right_numbers() -> None:
    with FarDevice() as far:
        x, ids = far_tensors()
        weight = torch.nn.Parameter(x.clone())
        with far.region() as region:
            rows = torch.repeat_interleave(torch.arange(4, device=FAR), ids, output_size=4)
            drawn = philox.uniform(ids[0], 7, rows, 2)
            (weight[ids] * drawn[:, None]).sum().backward()
    assert region.violations == []
    cpu_rows = torch.tensor([0, 0, 2, 3])
    assert torch.equal(numbers(rows), cpu_rows)
    expected = philox.uniform(2, 7, cpu_rows, 2)
    assert torch.equal(numbers(drawn), expected)
    assert weight.grad is not None
    by_item = torch.zeros(4).index_add_(0, torch.tensor([2, 0, 1, 1]), expected)
    torch.testing.assert_close(numbers(weight.grad), by_item[:, None].expand(4, 3))


@pytest.mark.parametrize(
    "second",
    [
        lambda x: x[:3] * 2.0,  # another shape
        lambda x: x * 3.0,  # another number
        lambda x: (x + x) * 1.0,  # another operator
        lambda x: x.t().contiguous().t() * 2.0,  # another layout
    ],
)
def test_two_calls_are_the_same_only_with_the_same_shapes_and_numbers(
    second: Callable[[Tensor], Tensor],
) -> None:
    def written(call: Callable[[Tensor], Tensor]) -> list[str]:
        with FarDevice() as far:
            x, _ = far_tensors()
            with far.region() as region:
                call(x)
        return region.operators

    first = written(lambda x: x * 2.0)
    assert len(first) == 1
    assert first == written(lambda x: x * 2.0)
    assert first != written(second)


def test_the_jagged_step_is_seen_for_what_it_is() -> None:
    """It knows its shapes, so it never waits for the device; but it copies them there."""
    asked = load_config("sasrec", sets=SETTINGS, flags={"data.path": "-"})
    made = split()
    with FarDevice() as far:
        method = build(asked, made.n_items).to(FAR)
        store = SequenceStore(made.train, FAR)
        steps = []
        for number in range(2):
            step = Step(0, number, torch.Generator())
            with far.region() as region:
                method.loss(method.batch(store, np.arange(16) + 16 * number, step), step).backward()
            steps.append(region)
    assert not any("aits" in violation for violation in steps[1].violations)
    assert any("copies" in violation for violation in steps[1].violations)
    assert any("generator" in violation for violation in steps[1].violations)
    assert steps[0].operators != steps[1].operators
