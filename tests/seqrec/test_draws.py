"""Random numbers by counter, beside those of a generator."""

from __future__ import annotations

import math

import pytest
import torch

from seqrec.data.philox import STREAM_DRAWS
from seqrec.draws import Draws, normal, seed, words
from seqrec_kernels import philox

CPU = torch.device("cpu")


def draws(root: int = 5) -> Draws:
    return Draws(torch.tensor(root))


def test_every_draw_has_a_seed_of_its_own() -> None:
    one, other = draws(), draws()
    found = [int(seed(one, CPU)) for _ in range(4)]
    assert len(set(found)) == 4
    assert found == [int(seed(other, CPU)) for _ in range(4)]
    assert not set(found) & {int(seed(draws(50), CPU)) for _ in range(4)}
    # the root is a hash of 63 bits; at their end the seeds go on with the negative ones
    assert int(seed(draws(2**63 - 1), CPU)) == -(2**63)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_words_are_philoxs(count: int) -> None:
    found = words(count, draws(5), CPU)
    assert found.shape == (count,) and found.dtype == torch.int64
    four = torch.stack(philox.words(6, STREAM_DRAWS, torch.arange(32)), 1)
    wanted = [
        int(four[place // 2, 2 * (place % 2)]) | int(four[place // 2, 2 * (place % 2) + 1]) << 32
        for place in range(count)
    ]
    assert [word % 2**64 for word in found.tolist()] == wanted


def test_fewer_words_are_the_first_of_more() -> None:
    """What a token draws does not depend on how much is drawn behind it."""
    assert torch.equal(words(100, draws(), CPU)[:33], words(33, draws(), CPU))


def test_a_generator_draws_what_it_always_has() -> None:
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    wanted = torch.empty(9, dtype=torch.int64).random_(-(2**63), None, generator=b)
    assert torch.equal(words(9, a, CPU), wanted)
    scalar = torch.zeros((), dtype=torch.int64).random_(-(2**63), None, generator=b)
    assert torch.equal(seed(a, CPU), scalar)
    assert torch.equal(normal(3, 5, a, CPU), torch.empty(3, 5).normal_(generator=b))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 5), (400, 500)])
def test_normal_numbers_are_normal(shape: tuple[int, int]) -> None:
    found = normal(*shape, draws(), CPU)
    assert found.shape == shape and found.dtype == torch.float32 and found.isfinite().all()
    if shape[0] < 100:
        return
    n = found.numel()
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        off = (found.double() ** power).mean() - moment
        assert abs(float(off)) < 4 * math.sqrt(spread / n), power
    # neither the two numbers of a word nor neighbours go together
    flat = found.flatten().double()
    for other in (flat.roll(1), flat.roll(n // 2)):
        assert abs(float((flat * other).mean())) < 4 / math.sqrt(n)
    for edge, share in ((1.0, 0.1586553), (2.0, 0.0227501)):
        for side in (flat > edge, flat < -edge):
            assert abs(float(side.double().mean()) - share) < 4 * math.sqrt(share / n)
