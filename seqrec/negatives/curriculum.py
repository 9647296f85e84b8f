"""How many of the best candidates R2NS draws from, epoch by epoch.

With the decay k, normalised over the terms x so that all of them add up to .99,

    f(x) = A exp(-k x),   s(t) = sum over x <= t of f(x),   M(t) = max(M_min, floor(C (1 - s(t))))

where C is the nominal number of candidates and t counts epochs from the end of the warm-up.  Paper
and code count differently: the paper's s(0) is f(0), with the terms x = 0 .. T; the code's helper
has T terms and starts from s = 0, so that its first epoch draws from all candidates.  Behind the
last term s stays at .99.
"""

from __future__ import annotations

import math


def narrowed(
    epoch: int, candidates: int, *, decay: float, terms: int, smallest: int, indexing: str = "code"
) -> int:
    """M in an epoch.

    Args:
        epoch: from 0, of the curriculum.
        candidates: C.
        decay: k; 0: `smallest` from the beginning.
        terms: T.
        smallest: M_min.
        indexing: ``code`` or ``paper``.
    """
    if decay == 0:
        return smallest
    known = terms if indexing == "code" else terms + 1
    added = min(epoch if indexing == "code" else epoch + 1, known)
    weights = [math.exp(-decay * x) for x in range(known)]
    share = 0.99 * math.fsum(weights[:added]) / math.fsum(weights)
    return max(smallest, math.floor(candidates * (1 - share)))
