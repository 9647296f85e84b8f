"""The compiled iteration of k-means: its bounds change no bit, nor do threads."""

from __future__ import annotations

import pytest
import torch

from seqrec.methods import kmeans
from seqrec.methods.kmeans import KMeans
from seqrec_kernels import native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def groups(spread: float) -> torch.Tensor:
    """9000 points (three chunks) of width 21 around 40 centres; `spread` is their radius."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(40, 21, generator=generator)
    return centres.repeat(225, 1) + spread * torch.randn(9000, 21, generator=generator)


def iterations(points: torch.Tensor, count: int, fresh: bool) -> list[tuple[torch.Tensor, ...]]:
    """Assignment, sums, sizes and lower bounds after each iteration; `fresh` forgets the bounds."""
    centroids = points[:60].clone()
    bounds = torch.full((3, len(points)), torch.nan, dtype=torch.float64)
    chosen, sizes = torch.full((len(points),), -1), torch.full((60,), -1)
    sums, moved = torch.full_like(centroids, torch.nan), torch.zeros(60, dtype=torch.float64)
    found = []
    for turn in range(count):
        torch.ops.seqrec_native.kmeans_step(
            points, centroids, kmeans._half(centroids), moved, fresh or turn == 0, bounds, chosen,
            sums, sizes
        )  # fmt: skip
        found.append((chosen.clone(), sums.clone(), sizes.clone(), bounds[1].clone()))
        new = kmeans._from_sums(sums, sizes, centroids, torch.zeros(21))
        moved = (new.double() - centroids.double()).square().sum(1).sqrt()
        centroids = new
    return found


@pytest.mark.parametrize("spread", [0.3, 1.0, 1e-4, 1e4])
def test_points_that_bounds_spare_change_no_bit(spread: float) -> None:
    """Clusters, noise, and points so near to each other that rounding decides."""
    points = groups(spread)
    for version in native.versions():
        with native.version(version):
            spared, scored = iterations(points, 12, False), iterations(points, 12, True)
        for one, other in zip(spared, scored, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        if spread == 0.3:  # and there are such points: a bound that was widened is no new one
            assert (spared[-1][3] < scored[-1][3]).double().mean() > 0.5


def test_an_iteration_is_the_definition() -> None:
    points = groups(0.3)
    centroids = points[:60].double()
    for version in native.versions():
        with native.version(version):
            ((chosen, sums, sizes, _),) = iterations(points, 1, True)
        distances = (points.double()[:, None] - centroids).square().sum(2)
        best = distances.gather(1, chosen[:, None])[:, 0] - distances.min(1).values
        assert best.max() < 1e-5
        exact = torch.zeros(60, 21, dtype=torch.float64).index_add_(0, chosen, points.double())
        torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-4)
        assert torch.equal(sizes, torch.bincount(chosen, minlength=60))


def test_the_number_of_threads_changes_no_bit() -> None:
    points, fitted = groups(1.0), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            model = KMeans(60, 21)
            model.fit(points, seed=1, warm=False)
            fitted.append(model.centroids)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*fitted)
