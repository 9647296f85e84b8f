"""The ascent of noise in C++, in every instruction set, against the dense one in float64."""

from __future__ import annotations

import pytest
import torch
from contrast_calls import a_row_without_a_direction_stays, call
from native_versions import threads, version  # noqa: F401 (fixtures)

from seqrec_kernels import ascend_noise, backend


@pytest.mark.parametrize("size", [1.0, 20.0])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (63, 9, 65, 4), (3, 0, 2, 50), (64, 97, 253, 123), (300, 31, 520, 8)],
    ids=str,
)
def test_agrees_with_float64(shape: tuple[int, int, int, int], ids: bool, size: float) -> None:
    tensors, options = call(*shape, ids=ids, size=size)
    found = ascend_noise(*tensors, step_size=0.1, **options)
    with backend("reference"):
        plain = ascend_noise(*tensors, step_size=0.1, **options)
    exact = ascend_noise(*(t.double() for t in tensors), step_size=0.1, **options)
    assert found.dtype == torch.float32 and not torch.equal(found, tensors[3])
    error = 2 * float((plain - exact).abs().max()) + 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=error)


def test_a_direction_is_no_smaller_for_being_far_away() -> None:
    a, p, n, _ = call(70, 8, 6, 16, size=60.0)[0]
    far = ascend_noise(20 * a, 20 * p, n, -20 * a, steps=1, step_size=0.5)
    moved = (far + 20 * a).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((70,), 0.5), rtol=1e-3, atol=0)


def test_a_row_without_a_direction_stays() -> None:
    a_row_without_a_direction_stays()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_noise_is_moved_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    tensors, options = call(60, 70, 40, 8)
    narrow = [t.to(dtype) for t in tensors]
    found = ascend_noise(*narrow, steps=8, step_size=0.02, **options)
    wide = ascend_noise(*(t.float() for t in narrow), steps=8, step_size=0.02, **options)
    assert found.dtype == dtype and torch.equal(found, wide.to(dtype))


def test_neither_threads_repetition_nor_strides_change_a_bit(threads: int) -> None:  # noqa: F811
    tensors, options = call(300, 70, 200, 20)
    found = ascend_noise(*tensors, step_size=0.1, **options)
    columns = [t.T.contiguous().T.requires_grad_() for t in tensors]
    copies = [t.detach().clone() for t in columns]
    again = ascend_noise(*columns, step_size=0.1, **options)
    assert torch.equal(found, again) and not again.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(columns, copies, strict=True))
    torch.set_num_threads(1)
    alone = ascend_noise(*tensors, step_size=0.1, **options)
    torch.set_num_threads(threads)
    assert torch.equal(found, alone)
    compiled = torch.compile(ascend_noise, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors, step_size=0.1, **options), found)
