"""k-means on the training device: the intent clusters of ICSRec and FENRec.

Lloyd's iterations, in the schedule that the published systems get from faiss: the first fit makes
`restarts` independent starts from random points; every later fit starts from the centroids it has
and runs ``restarts x iterations`` iterations on.  Of the restarts the one with the lowest objective
(sum of squared distances in its last assignment) is kept.  A cluster without points takes a copy of
a populated one, and both are pushed apart by one part in 1024, in opposite directions in every
other coordinate.

Distances are never formed: the nearest centroid is the largest of ``x . c - |c|^2 / 2``, of points
and centroids less the points' mean.  That moves no distance, and keeps rounding from drowning the
differences where encodings lie far from 0 and near to each other, as they do after a first epoch.
On a CPU an iteration is one pass of C++ (csrc/cpu/kmeans.cpp), which spares a point its scores
where bounds say that they would change nothing; elsewhere the scores are formed in blocks of
points.  There is no randomness but in where a first fit starts, and sums have one order, so the
same points give the same bits.  Nothing here waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrec.data.philox import permutation
from seqrec.data.store import to_device
from seqrec_kernels import native

_BLOCK = 2048  # points; their distances to a few hundred centroids stay in cache
_APART = 1 / 1024


class KMeans(nn.Module):
    """Centroids that follow the points from one fit to the next.

    Args:
        clusters: C, at least 1.
        dim: D, width of the points.
        iterations: of Lloyd's algorithm in one restart.
        restarts: independent in a first fit, one after the other in a warm one.
    """

    centroids: Tensor

    def __init__(self, clusters: int, dim: int, *, iterations: int = 20, restarts: int = 5) -> None:
        super().__init__()
        self.iterations, self.restarts = iterations, restarts
        self.register_buffer("centroids", torch.zeros(clusters, dim))

    @torch.no_grad()
    def fit(self, points: Tensor, seed: int, *, warm: bool) -> None:
        """Move the centroids to the points.

        Args:
            points: float32 [M, D] on the device of this module, M at least C.
            seed: chooses the points that the restarts of a first fit start from.
            warm: start from the centroids there are.

        Raises:
            ValueError: fewer points than clusters.
        """
        count = self.centroids.shape[0]
        if len(points) < count:
            raise ValueError(f"{count} clusters need as many points; there are {len(points)}")
        # what remains of encodings that have one direction in common is all that sets them apart
        middle = points.mean(0)
        points = points - middle
        current = best = self.centroids - middle
        lowest = torch.full((), torch.inf, dtype=torch.float64, device=points.device)
        for restart in range(self.restarts):
            if not warm:
                chosen = permutation(seed, restart, len(points))[:count]
                current = points[to_device(chosen, points.device)]
            current, objective = _lloyd(points, current, self.iterations, middle)
            best = torch.where(objective < lowest, current, best)
            lowest = torch.minimum(objective, lowest)
        self.centroids.copy_(best + middle)

    @torch.no_grad()
    def nearest(self, points: Tensor) -> Tensor:
        """The cluster whose centroid is nearest, lowest first among equals: [N, D] -> int64 [N]."""
        return _nearest(points, self.centroids)

    def unit(self) -> Tensor:
        """The centroids scaled to length 1, [C, D]; a centroid of zeros stays one."""
        return nn.functional.normalize(self.centroids, dim=1)


def _lloyd(
    points: Tensor, centroids: Tensor, iterations: int, middle: Tensor
) -> tuple[Tensor, Tensor]:
    """Centroids after `iterations`, and the sum of squared distances in the last assignment.

    `middle` [D] has been taken off points and centroids.
    """
    if native.unsupported(points, centroids) is None and points.dtype == torch.float32:
        return _compiled(points.contiguous(), centroids.contiguous(), iterations, middle)
    for _ in range(iterations):
        assigned, chosen = centroids, _nearest(points, centroids)
        centroids = _means(points, chosen, centroids, middle)
    return centroids, _objective(points, assigned, chosen)


def _compiled(
    points: Tensor, centroids: Tensor, iterations: int, middle: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`_lloyd` in C++; it ends where an iteration has moved nothing, as no later one will."""
    bounds = points.new_empty(3, len(points), dtype=torch.float64)
    chosen = torch.empty(len(points), dtype=torch.int64)
    sums, moved = torch.empty_like(centroids), bounds.new_zeros(len(centroids))
    sizes = torch.empty(len(centroids), dtype=torch.int64)
    for turn in range(iterations):
        torch.ops.seqrec_native.kmeans_step(
            points, centroids, _half(centroids), moved, turn == 0, bounds, chosen, sums, sizes
        )
        assigned, centroids = centroids, _from_sums(sums, sizes, centroids, middle)
        if torch.equal(assigned, centroids):
            break
        moved = torch.linalg.vector_norm(centroids.double() - assigned.double(), dim=1)
    return centroids, _objective(points, assigned, chosen)


def _objective(points: Tensor, centroids: Tensor, chosen: Tensor) -> Tensor:
    """The sum of squared distances of the points to their centroids, 0-d float64."""
    total = torch.zeros((), dtype=torch.float64, device=points.device)
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += (points[block] - centroids[chosen[block]]).square_().sum(dtype=torch.float64)
    return total


def _means(points: Tensor, chosen: Tensor, centroids: Tensor, middle: Tensor) -> Tensor:
    """The means of the clusters, summed in the points' order; empty clusters split others."""
    count = len(centroids)
    # a sorted bag instead of index_add_: the same order of addition on every device
    order = torch.argsort(chosen, stable=True)
    sizes = torch.zeros(count, dtype=torch.int64, device=points.device)
    sizes.scatter_add_(0, chosen, torch.ones_like(chosen))
    starts = sizes.cumsum(0) - sizes
    sums = nn.functional.embedding_bag(order, points, starts, mode="sum")
    return _from_sums(sums, sizes, centroids, middle)


def _from_sums(sums: Tensor, sizes: Tensor, centroids: Tensor, middle: Tensor) -> Tensor:
    means = torch.where(sizes[:, None] > 0, sums / sizes[:, None], centroids)
    return _split(means, sizes, middle)


def _split(means: Tensor, sizes: Tensor, middle: Tensor) -> Tensor:
    """Give the i-th empty cluster a copy of the i-th largest, and push the two apart.

    Without an empty cluster nothing changes, and nobody asks the device whether there is one.
    Where more than half are empty, as many split as there are others, and the rest stay.
    """
    empty = sizes == 0
    largest = torch.argsort(sizes, descending=True, stable=True)
    donor = largest[(empty.cumsum(0) - 1).clamp(min=0)]
    takes = empty & ~empty[donor]
    gives = torch.zeros_like(sizes).scatter_add_(0, donor, takes.long()) > 0
    push = torch.full_like(means[0], _APART)
    push[1::2] *= -1
    apart = (means + middle) * push  # a part of where the centroid really lies
    moved = torch.where(takes[:, None], (means + apart)[donor], means)
    return torch.where(gives[:, None], means - apart, moved)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    half = _half(centroids)
    found = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        torch.argmax(torch.addmm(half, block, centroids.T), 1, out=found[start : start + _BLOCK])
    return found


def _half(centroids: Tensor) -> Tensor:
    """[C], what every score of a centroid has added: half its square, negative."""
    return centroids.square().sum(1) * -0.5
