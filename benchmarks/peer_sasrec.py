"""One library's SASRec on one log, by CPU time of one thread: what a step takes, and how long until
it ranks well.

    python benchmarks/peer_sasrec.py seqrec --data ml-100k.inter --epochs 40 --out seqrec.json

Run by the Python of an environment that holds the library (``benchmarks/peers.sh`` makes them); so
it imports nothing of this repository but, for ``seqrec``, the installed package.

All have the same width, layers, heads, dropout, input length, rows (a user's last 51 training
events, every place predicts the next), softmax over the whole catalogue, Adam and batch.  Blocks,
initial weights and places are each library's own.  What the clock sees is the library's training
loop, its data loader included; not the ranking between the epochs, which is done on the validation
event of every user (the last but one), all items but the seen ones as candidates, by NDCG@10.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

LENGTH = 50
K = 10
# what a library's training yields after each epoch: CPU seconds of it, its steps, and a function
# that returns the K best item rows of every user, int64 [U, K]
Epochs = Iterator[tuple[float, int, Callable[[], np.ndarray]]]


def read(path: Path) -> list[list[int]]:
    """Sequences of item rows, oldest first: of `user item ...` lines or of RecBole's .inter."""
    rows: dict[str, int] = {}
    users: dict[str, list[tuple[float, int]]] = {}
    lines = path.read_text().splitlines()
    if path.suffix == ".inter":
        for line in lines[1:]:
            user, item, _, at = line.split("\t")
            users.setdefault(user, []).append((float(at), rows.setdefault(item, len(rows))))
        return [[i for _, i in sorted(e, key=lambda x: x[0])] for e in users.values()]
    return [[rows.setdefault(i, len(rows)) for i in line.split()[1:]] for line in lines]


def ndcg(best: np.ndarray, targets: np.ndarray) -> float:
    """Mean over users of 1 / log2(1 + place of the target), 0 behind the K-th."""
    hits = best == targets[:, None]
    return float((hits / np.log2(np.arange(2, K + 2))).sum(1).mean())


def padded(sequences: list[list[int]], fill: int) -> np.ndarray:
    """The last LENGTH items of each, right-aligned."""
    out = np.full((len(sequences), LENGTH), fill, dtype=np.int64)
    for row, items in zip(out, sequences, strict=True):
        row[LENGTH - len(items[-LENGTH:]) :] = items[-LENGTH:]
    return out


def train_seqrec(train: list[list[int]], n_items: int, args: argparse.Namespace) -> Epochs:
    import torch

    from seqrec.config import load_config
    from seqrec.data.split import Jagged
    from seqrec.data.store import SequenceStore, epoch_order
    from seqrec.methods import build
    from seqrec.methods.base import Step
    from seqrec_kernels import SeenItems, catalog_topk

    config = load_config(
        "sasrec",
        sets={
            "encoder.dim": args.dim,
            "encoder.layers": args.layers,
            "encoder.heads": args.heads,
            "encoder.dropout": args.dropout,
            "encoder.max_length": LENGTH,
            "training.lr": args.lr,
            "training.batch": args.batch,
            "training.seed": args.seed,
        },
        flags={"data.path": "-"},
    )
    method = build(config, n_items)
    inputs = Jagged.from_lists(train)
    store, generator = SequenceStore(inputs), torch.Generator()
    optimizer = torch.optim.AdamW(method.parameters(), args.lr, weight_decay=0.0, fused=True)
    method.prepare(store)
    seen = SeenItems(torch.from_numpy(inputs.offsets), torch.from_numpy(inputs.values))

    @torch.no_grad()
    def best() -> np.ndarray:
        histories = store.batch(np.arange(store.n_sequences), LENGTH)
        return catalog_topk(method.queries(histories), method.items(), K, seen=seen).ids.numpy()

    rows = method.rows(store)
    for epoch in range(args.epochs):
        begun, done = time.process_time(), 0
        order = epoch_order(args.seed, epoch, rows)
        for start in range(0, rows, args.batch):
            if done == args.steps != 0:
                break
            generator.manual_seed(args.seed * 1_000_003 + epoch * 10_007 + done)
            step = Step(epoch, epoch * rows + done, generator)
            method.loss(
                method.batch(store, order[start : start + args.batch], step), step
            ).backward()
            torch.nn.utils.clip_grad_norm_(method.parameters(), config.training.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        yield time.process_time() - begun, done, best


def train_rectools(train: list[list[int]], n_items: int, args: argparse.Namespace) -> Epochs:
    import pandas as pd
    from pytorch_lightning import Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    frame = pd.DataFrame(
        [
            (u, item, 1.0, place)
            for u, items in enumerate(train)
            for place, item in enumerate(items)
        ],
        columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime],
    )
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    dataset = Dataset.construct(frame)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=args.epochs,
            limit_train_batches=args.steps or 1.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    seed_everything(args.seed, verbose=False)
    model = SASRecModel(
        n_blocks=args.layers,
        n_heads=args.heads,
        n_factors=args.dim,
        dropout_rate=args.dropout,
        session_max_len=LENGTH,
        loss="softmax",
        lr=args.lr,
        batch_size=args.batch,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )

    def best() -> np.ndarray:
        users = np.arange(len(train))
        found = model.recommend(users, dataset, k=K, filter_viewed=True)
        top = np.full((len(train), K), -1, dtype=np.int64)
        top[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
        return top

    batches = -(-sum(len(items) >= 2 for items in train) // args.batch)
    for _ in range(args.epochs):
        begun = time.process_time()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        yield time.process_time() - begun, min(batches, args.steps or batches), best


def train_replay(train: list[list[int]], n_items: int, args: argparse.Namespace) -> Epochs:
    import torch
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
    from replay.nn.sequential import SasRec

    torch.manual_seed(args.seed)
    item_id = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=args.dim,
        padding_value=n_items,
        cardinality=n_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    model = SasRec.from_params(
        TensorSchema([item_id]),
        embedding_dim=args.dim,
        num_heads=args.heads,
        num_blocks=args.layers,
        max_sequence_length=LENGTH,
        dropout=args.dropout,
    )
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    usable = [items for items in train if len(items) >= 2]
    # its own loader reads Parquet files of padded rows: here they lie ready in memory
    inputs = torch.from_numpy(padded([items[-LENGTH - 1 : -1] for items in usable], n_items))
    labels = torch.from_numpy(padded([items[1:] for items in usable], n_items))
    histories = torch.from_numpy(padded(train, n_items))

    @torch.no_grad()
    def best() -> np.ndarray:
        model.eval()
        found = []
        for start in range(0, len(train), 256):
            rows = histories[start : start + 256]
            scores = model({"item_id": rows}, rows != n_items)["logits"][:, :n_items]
            for row, items in zip(scores, train[start : start + 256], strict=True):
                row[items] = -torch.inf
            found.append(scores.topk(K).indices)
        model.train()
        return torch.cat(found).numpy()

    model.train()
    for _ in range(args.epochs):
        begun, done = time.process_time(), 0
        for rows in torch.randperm(len(usable)).split(args.batch):
            if done == args.steps != 0:
                break
            x, y = inputs[rows], labels[rows, :, None]
            found = model(
                {"item_id": x},
                x != n_items,
                positive_labels=y,
                target_padding_mask=y != n_items,
            )
            found["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        yield time.process_time() - begun, done, best


LIBRARIES = {"seqrec": train_seqrec, "rectools": train_rectools, "replay": train_replay}
# whose versions are told; seqrec runs from the checkout, whose commit the summary has
_PACKAGES = {"seqrec": (), "rectools": ("rectools",), "replay": ("replay-rec",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="of an epoch; 0: all, and ranked")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    sequences = [items for items in read(args.data) if len(items) >= 3]
    n_items = 1 + max(map(max, sequences))
    train = [items[:-2] for items in sequences]
    targets = np.array([items[-2] for items in sequences])
    epochs = []
    for seconds, steps, best in LIBRARIES[args.library](train, n_items, args):
        reached = None if args.steps else ndcg(best(), targets)
        epochs.append({"cpu_seconds": seconds, "steps": steps, "valid NDCG@10": reached})
        print(args.library, epochs[-1], file=sys.stderr)
    found: dict[str, Any] = {
        "library": args.library,
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "data", "library")},
        "data": args.data.name,
        "users": len(sequences),
        "items": n_items,
        "epochs": epochs,
        "versions": {
            name: metadata.version(name) for name in ("torch", "numpy", *_PACKAGES[args.library])
        },
        "python": platform.python_version(),
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
