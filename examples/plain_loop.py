"""The full-catalogue loss in a plain PyTorch loop: next-item prediction without the score matrix.

    python examples/plain_loop.py

Users like one of twenty groups of items and mostly walk to the item after the last one. A model of
two tables, item in and item out, learns it. Only two lines differ from the usual loop: the loss,
which replaces ``F.cross_entropy(queries @ items.T, targets)``, and the evaluation by exact ranks.
"""

from __future__ import annotations

import torch

from seqrec_kernels import (
    SeenItems,
    catalog_cross_entropy,
    catalog_rank,
    catalog_topk,
    rank_metrics,
)

ITEMS, GROUP, WIDTH = 2000, 100, 32


def make_sequences(users: int, length: int) -> torch.Tensor:
    """``[users, length]`` item ids: mostly the next item of a group, else any item of it."""
    group = torch.randint(ITEMS // GROUP, (users, 1)) * GROUP
    place = torch.randint(GROUP, (users, length))
    for t in range(1, length):
        follow = torch.rand(users) < 0.8
        place[:, t] = torch.where(follow, (place[:, t - 1] + 1) % GROUP, place[:, t])
    return group + place


def main() -> dict[str, float]:
    """Trains, evaluates and recommends; returns the metrics."""
    torch.manual_seed(0)
    sequences = make_sequences(users=4000, length=8)
    inputs, targets = sequences[:, -3], sequences[:, -2]  # the last item is held out

    last = torch.nn.Embedding(ITEMS, WIDTH)
    items = torch.nn.Embedding(ITEMS, WIDTH)
    optimizer = torch.optim.Adam([*last.parameters(), *items.parameters()], lr=0.03)
    for epoch in range(6):
        order = torch.randperm(len(inputs))
        for batch in order.split(500):
            queries = last(inputs[batch])
            loss = catalog_cross_entropy(queries, items.weight, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

    with torch.no_grad():
        queries = last(sequences[:, -2])
        seen = SeenItems.from_lists(sequences[:, :-1].tolist())
        rank = catalog_rank(queries, items.weight, sequences[:, -1], seen=seen)
        metrics = rank_metrics(rank, ks=(10,))
        best = catalog_topk(
            queries[:1], items.weight, 5, seen=seen._replace(rows=torch.tensor([0]))
        )
    print({name: round(value, 4) for name, value in metrics.items()})
    print(f"user 0 saw {sequences[0, :-1].tolist()} and is shown {best.ids[0].tolist()}")
    return metrics


if __name__ == "__main__":
    main()
