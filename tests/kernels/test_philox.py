"""Philox4x32-10: the contract's numbers, the published ones, and Python integers."""

from __future__ import annotations

import torch

from seqrec_kernels import philox


def test_the_contracts_known_answers() -> None:
    r, k = torch.tensor([0, 0, 1, 5]), torch.tensor([0, 1, 0, 7])
    ours = philox.uniform(3, philox.STREAM_MIX, k, r)
    known = torch.tensor([0.08167261, 0.67114049, 0.15195173, 0.27169479], dtype=torch.float64)
    assert ours.dtype == torch.float32
    # eight digits name one multiple of 2**-24
    assert torch.equal(ours.double(), (known * 2**24).round() / 2**24)


def plain(seed: int, counter: list[int]) -> list[int]:
    """The published algorithm in Python integers."""
    mask = 0xFFFFFFFF
    k0, k1 = seed & mask, (seed >> 32) & mask
    x = counter
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k0, b & mask, (a >> 32) ^ x[3] ^ k1, a & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return x


def test_all_zeros_gives_the_published_words() -> None:
    words = philox.words(0, 0, torch.tensor(0))
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_every_word_over_the_range_of_seeds_and_counters() -> None:
    big = 2**32 - 1
    for seed in (0, 1, 3, big, 2**32, 0x9E3779B97F4A7C15, -1, 2**63 - 1):
        for c0, c1, stream in ((0, 0, 1), (big, big, 2), (123456789, 2**31, 7), (2**40 + 5, 1, 1)):
            ours = philox.words(seed, stream, torch.tensor([c0]), torch.tensor([c1]))
            assert [int(w) for w in ours] == plain(seed, [c0 & big, c1 & big, 0, stream])
            if -(2**63) <= seed < 2**63:
                read = philox.words(torch.tensor(seed), stream, torch.tensor([c0]), c1)
                assert all(torch.equal(a, b) for a, b in zip(ours, read, strict=True))


def test_uniforms_and_choices_are_their_formulas_and_fair() -> None:
    c = torch.arange(200_000)
    word = philox.words(11, 5, c)[0]
    u = philox.uniform(11, 5, c)
    assert torch.equal(u.double(), (word >> 8).double() / 2**24)
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.003
    picks = philox.choice(11, 5, 7, c)
    assert picks.tolist() == [(int(w) * 7) >> 32 for w in word]
    shares = torch.bincount(picks, minlength=7) / c.shape[0]
    assert shares.shape == (7,) and (shares - 1 / 7).abs().max() < 0.004
    assert int(philox.choice(11, 5, 2**31 - 1, c).max()) < 2**31 - 1


def test_counters_broadcast_and_uses_do_not_share_numbers() -> None:
    grid = philox.uniform(3, 1, torch.arange(4), torch.arange(3)[:, None])
    assert grid.shape == (3, 4)
    assert grid[2, 1] == philox.uniform(3, 1, torch.tensor(1), torch.tensor(2))
    assert not torch.equal(grid, philox.uniform(3, 2, torch.arange(4), torch.arange(3)[:, None]))
    assert not torch.equal(grid, philox.uniform(4, 1, torch.arange(4), torch.arange(3)[:, None]))
