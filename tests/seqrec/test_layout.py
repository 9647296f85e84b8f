"""Rectangles for attention: tokens in, tokens out, and nothing of the padding in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from little import jagged
from torch import Tensor

from seqrec.data.store import JaggedBatch, SequenceStore
from seqrec.encoders.layers import CausalSelfAttention
from seqrec.encoders.layout import Layout

SHAPES = {
    "one row of one": [1],
    "one row": [17],
    "all equal": [5, 5, 5, 5],
    "all one": [1, 1, 1],
    "ragged": [1, 50, 3, 4, 5, 50, 7, 2, 19, 4],
    "at the edges of the groups": [4, 5, 6, 7, 9, 10, 13, 14, 19, 20, 1],
}


def batch_of(lengths: list[int]) -> JaggedBatch:
    store = SequenceStore(jagged(*(list(range(n)) for n in lengths)))
    return store.batch(np.arange(len(lengths)), max(lengths))


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_there_and_back(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    layout = Layout(batch)
    x = torch.randn(sum(lengths), 3)
    blocks = layout.rectangles(x)
    assert torch.equal(layout.tokens(blocks), x)
    assert [tuple(block.shape[:2]) for block in blocks] == layout.shapes
    assert sum(rows for rows, _ in layout.shapes) == len(lengths)


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_rows_stand_whole_and_from_the_left(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    # a token says where it is from: row, place
    marks = torch.stack([batch.rows(), batch.places()], 1).double()
    found = []
    for block in Layout(batch).rectangles(marks):
        for row in block:
            owner = int(row[0, 0])
            length = lengths[owner]
            assert row[:length, 0].tolist() == [owner] * length
            assert row[:length, 1].tolist() == list(range(length))
            assert torch.isfinite(row).all()
            found.append(owner)
    assert sorted(found) == list(range(len(lengths)))


def test_groups_hold_little_padding() -> None:
    """The promise of the module: the worst length of a group is two thirds of its width."""
    lengths = np.random.default_rng(0).geometric(0.12, 400).clip(1, 50).tolist()
    batch = batch_of(lengths)
    slots = sum(rows * width for rows, width in Layout(batch).shapes)
    assert sum(lengths) > 0.67 * slots
    assert sum(lengths) < 0.5 * len(lengths) * max(lengths)  # a plain rectangle is mostly padding


def mixed(x: Tensor, layout: Layout) -> Tensor:
    """Something that mixes the tokens of a row causally and is not linear, as attention is."""
    return layout.tokens([block.tanh().cumsum(1) * block for block in layout.rectangles(x)])


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_each_row_alone(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    x = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(lengths), 2, dtype=torch.float64)
    mine = mixed(x, Layout(batch))
    (gradient,) = torch.autograd.grad((mine * weight).sum(), x)

    rows = x.detach().split(lengths)
    padded = torch.full((len(lengths), max(lengths), 2), torch.nan, dtype=torch.float64)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    padded.requires_grad_()
    theirs = torch.cat(
        [r[:n] for r, n in zip(padded.tanh().cumsum(1) * padded, lengths, strict=True)]
    )
    (at_slots,) = torch.autograd.grad(
        sum((r.tanh().cumsum(0) * r * w).sum() for r, w in _pairs(padded, weight, lengths)), padded
    )
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(
        gradient,
        torch.cat([g[:n] for g, n in zip(at_slots, lengths, strict=True)]),
        rtol=0,
        atol=1e-14,
    )


def _pairs(padded: Tensor, weight: Tensor, lengths: list[int]) -> list[tuple[Tensor, Tensor]]:
    return [(r[:n], w) for r, n, w in zip(padded, lengths, weight.split(lengths), strict=True)]


@pytest.mark.parametrize("lengths", [[1, 6, 3], [50, 1, 1, 2]])
def test_what_stands_in_padded_slots_reaches_nothing(lengths: list[int]) -> None:
    """Poison every slot that is no token, after the gather and in the gradient on the way back."""
    batch = batch_of(lengths)
    layout = Layout(batch)
    x = torch.randn(sum(lengths), 2, requires_grad=True)
    real = [
        torch.zeros(block.shape[:2], dtype=torch.bool)
        for block in layout.rectangles(torch.ones(sum(lengths), 1))
    ]
    for mask, block in zip(real, layout.rectangles(batch.rows()[:, None].double()), strict=True):
        for row, owner in enumerate(block[:, 0, 0].long().tolist()):
            mask[row, : lengths[owner]] = True
    assert sum(int(mask.sum()) for mask in real) == sum(lengths)
    blocks = [
        torch.where(mask[..., None], block, torch.nan)
        for mask, block in zip(real, layout.rectangles(x), strict=True)
    ]
    back = layout.tokens(blocks)
    assert torch.equal(back, x)
    # the gradient of a padded slot is NaN here; it must not arrive at the token it was copied from
    slots = layout.rectangles(x)
    pairs = zip(real, slots, strict=True)
    poison = [torch.where(m[..., None], 1.0, torch.nan).expand(s.shape) for m, s in pairs]
    torch.autograd.backward(slots, [p.contiguous() for p in poison])
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_no_gradient_is_added_twice_or_lost() -> None:
    batch = batch_of([2, 9, 1, 30, 4])
    layout = Layout(batch)
    x = torch.randn(46, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: layout.tokens(layout.rectangles(y)), x)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_padded_and_the_host_waits_for_nothing() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run("cuda", torch.cuda.set_sync_debug_mode)


def test_on_other_devices_nothing_is_padded() -> None:
    run("meta", lambda mode: None)


def run(device: str, watch: Callable[[str], None]) -> None:
    """Both ways through attention and back, on a device whose memory the host does not read."""
    host = SequenceStore(jagged([1, 2, 3], [4], [5, 6])).batch(np.arange(3), 10)
    batch = JaggedBatch(host.items.to(device), host.offsets.to(device), host.lengths)
    attention = CausalSelfAttention(32, 2, 0.0).to(device)
    x = torch.randn(6, 32, device=device, requires_grad=True)
    watch("error")
    try:
        layout = Layout(batch)
        every, one = attention(x, layout, None), attention.last(x, layout, None)
        (every.sum() + one.sum()).backward()
    finally:
        watch("default")
    assert every.shape == (6, 32) and one.shape == (3, 32)
    assert x.grad is not None and x.grad.shape == x.shape
    assert "_plan" not in vars(layout)
