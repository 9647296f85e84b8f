"""k-means: the schedule, against a float64 reimplementation, and what happens to empty clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqrec.data.philox import permutation
from seqrec.methods.kmeans import KMeans
from seqrec_kernels import native


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test, on both implementations of an iteration."""
    if request.param == "torch":
        monkeypatch.setattr(native, "MISSING", "switched off")
    elif (reason := native.missing()) is not None:
        pytest.skip(reason)
    return str(request.param)


def lloyd(points: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, float]:
    """Plain Lloyd in float64; no cluster may run empty."""
    for _ in range(iterations):
        squares = ((points[:, None] - centroids[None]) ** 2).sum(2)
        chosen = squares.argmin(1)
        objective = squares[np.arange(len(points)), chosen].sum()
        centroids = np.stack([points[chosen == c].mean(0) for c in range(len(centroids))])
    return centroids, objective


@pytest.fixture
def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    # more than one block, and no round number
    return torch.randn(2500, 7, generator=generator)


def test_the_first_fit_keeps_the_best_of_independent_starts(points: torch.Tensor) -> None:
    model = KMeans(5, 7, iterations=4, restarts=3)
    model.fit(points, seed=11, warm=False)
    exact = points.double().numpy()
    runs = [lloyd(exact, exact[permutation(11, restart, 2500)[:5]], 4) for restart in range(3)]
    objectives = [objective for _, objective in runs]
    assert np.ptp(objectives) > 1  # the starts end in different places
    best = runs[int(np.argmin(objectives))][0]
    np.testing.assert_allclose(model.centroids.numpy(), best, atol=1e-5)


def test_a_warm_fit_goes_on_through_all_restarts(points: torch.Tensor) -> None:
    model = KMeans(5, 7, iterations=2, restarts=3)
    model.fit(points, seed=11, warm=False)
    started = model.centroids.double().numpy()
    model.fit(points, seed=12, warm=True)
    expected, _ = lloyd(points.double().numpy(), started, 6)
    np.testing.assert_allclose(model.centroids.numpy(), expected, atol=1e-5)


def test_separate_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(6)
    labels = torch.arange(600) % 6
    points = centres[labels] + torch.randn(600, 6, generator=generator) * 0.1
    model = KMeans(6, 6, restarts=20)
    model.fit(points, seed=0, warm=False)
    found = model.nearest(points)
    pairs = {(int(a), int(b)) for a, b in zip(labels, found, strict=True)}
    assert len(pairs) == 6 == len({b for _, b in pairs})


def test_an_empty_cluster_splits_the_largest() -> None:
    """Two clusters far from all points; the two largest of the others are split, one each."""
    points = torch.cat((torch.randn(50, 4), 100 + torch.randn(30, 4), 200 + torch.randn(10, 4)))
    model = KMeans(5, 4, iterations=1, restarts=1)
    far = torch.full((2, 4), -1e6)
    model.centroids.copy_(torch.cat((far, points[:50].mean(0)[None], points[60:61], points[85:86])))
    model.fit(points, seed=0, warm=True)
    push = torch.tensor([1, -1, 1, -1]) / 1024
    means = torch.stack((points[:50].mean(0), points[50:80].mean(0), points[80:].mean(0)))
    expected = torch.cat((means[:2] * (1 + push), means[:2] * (1 - push), means[2:]))
    # sums of fifty numbers, rounded as numbers up to 200 are
    torch.testing.assert_close(model.centroids, expected, rtol=0, atol=1e-4)


def test_identical_points_leave_every_centroid_finite() -> None:
    """One cluster takes them all and can split only once a turn."""
    model = KMeans(8, 3, iterations=3, restarts=2)
    model.fit(torch.ones(20, 3), seed=0, warm=False)
    assert model.centroids.isfinite().all()
    assert (model.centroids - 1).abs().max() < 0.01


def test_nearest_uses_distance_and_not_the_largest_product() -> None:
    model = KMeans(3, 2)
    model.centroids.copy_(torch.tensor([[1.0, 0.0], [10.0, 0.0], [1.0, 0.0]]))
    # the product with the second is the largest; the first and third tie
    assert model.nearest(torch.tensor([[1.0, 0.1], [8.0, 0.0]])).tolist() == [0, 1]
    assert model.nearest(torch.empty(0, 2)).tolist() == []


def test_unit_has_length_one_and_keeps_a_zero() -> None:
    model = KMeans(2, 3)
    model.centroids[0] = torch.tensor([0.0, 3.0, 4.0])
    torch.testing.assert_close(model.unit(), torch.tensor([[0.0, 0.6, 0.8], [0.0, 0.0, 0.0]]))


def test_a_fit_is_the_same_bits_again_and_after_a_restore(points: torch.Tensor) -> None:
    def fitted(seeds: list[int], state: dict[str, torch.Tensor] | None = None) -> KMeans:
        model = KMeans(9, 7)
        if state is not None:
            model.load_state_dict(state)
        for number, seed in enumerate(seeds):
            model.fit(points, seed, warm=number > 0 or state is not None)
        return model

    once, twice = fitted([1, 2]), fitted([1, 2])
    assert torch.equal(once.centroids, twice.centroids)
    halfway = {name: x.clone() for name, x in fitted([1]).state_dict().items()}
    assert torch.equal(fitted([2], halfway).centroids, once.centroids)


def test_more_clusters_than_points_is_refused(points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="6 clusters need as many points; there are 5"):
        KMeans(6, 7).fit(points[:5], seed=0, warm=False)


def test_a_fit_that_stands_still_ends_where_all_its_iterations_would() -> None:
    """Four tight groups: after a few iterations nothing moves any more."""
    points = torch.eye(4).repeat(50, 1) + 1e-3 * torch.randn(200, 4)
    short, long = KMeans(4, 4, iterations=8), KMeans(4, 4, iterations=200)
    for model in (short, long):
        model.centroids.copy_(torch.eye(4) + 0.1)
        model.fit(points, seed=0, warm=True)
    assert torch.equal(short.centroids, long.centroids)
    assert torch.equal(short.nearest(points), torch.arange(4).repeat(50))
