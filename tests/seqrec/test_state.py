"""Two generations on disk: whole or not there, and the damaged one passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqrec.training.state import Counters, StateStore


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50,), float(step)), "n": torch.tensor(step)}


def save(store: StateStore, step: int, best: bytes | None = b"") -> None:
    """The state at a step; the best weights so far are the bytes `best`."""
    if best is not None:
        store.model.write_bytes(best or f"best at {step}".encode())
    counters = Counters(epoch=step // 10, step=step, best_epoch=0 if best is None else 1)
    store.save(weights(step), counters)


def loaded(store: StateStore) -> tuple[int, list[str]]:
    """Step of the state that `load` takes, checked to be whole; and its remarks."""
    found = store.load()
    assert found is not None
    tensors, counters, remarks = found
    if tensors:
        assert all(torch.equal(x, weights(counters.step)[name]) for name, x in tensors.items())
        assert tensors.keys() == weights(0).keys()
    return counters.step, remarks


def newest(store: StateStore) -> Path:
    return sorted(store.folder.iterdir())[-1]


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path)


def test_without_a_state_there_is_none(store: StateStore) -> None:
    assert store.load() is None
    store.folder.mkdir()
    assert store.load() is None


def test_what_is_saved_comes_back_exactly(store: StateStore) -> None:
    counters = Counters(3, 40, 7, 2, 0.1 + 0.2, True, 1.0 / 3)
    store.model.write_bytes(b"best")
    tensors = {
        "a": torch.tensor([0.1, -0.0, float("inf"), 1e-45]),
        "b": torch.tensor(1 / 3, dtype=torch.float64),
        "c": torch.arange(6, dtype=torch.int64).view(2, 3),
        "d": torch.empty(0, 4),
    }
    store.save(tensors, counters)
    found = store.load()
    assert found is not None
    assert found[1] == counters and found[2] == []
    for name, x in tensors.items():
        assert found[0][name].dtype == x.dtype and torch.equal(found[0][name], x)


def test_two_generations_are_kept_and_the_newest_is_taken(store: StateStore) -> None:
    for step in (5, 9, 10, 100, 1000):
        save(store, step)
        assert loaded(store) == (step, [])
    assert len(list(store.folder.iterdir())) == 2
    shutil.rmtree(newest(store))
    assert loaded(store) == (100, [])


def test_the_last_step_of_an_epoch_before_and_after_validation_are_two_states(
    store: StateStore,
) -> None:
    store.model.write_bytes(b"best")
    store.save(weights(8), Counters(epoch=0, step=8, step_in_epoch=8))
    store.save(weights(8), Counters(epoch=1, step=8, best_epoch=1, finished=True))
    assert len(list(store.folder.iterdir())) == 2
    found = store.load()
    assert found is not None and found[1].epoch == 1 and found[1].finished


def _truncated(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def _flipped(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 4
    (folder / name).write_bytes(bytes(content))


def _emptied(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


def _missing(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _garbage(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b'{"counters": [], "sha256": {"tensors.safetensors": 3}}')


def _folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def _not_utf8(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe{}")


def _older_version(folder: Path, name: str) -> None:
    path = folder / "counters.json"
    content = json.loads(path.read_text())
    del content["counters"]["best_value"]
    path.write_text(json.dumps(content))


def _edited(folder: Path, name: str) -> None:
    path = folder / "counters.json"
    path.write_text(path.read_text().replace('"step": ', '"step": 1'))


DAMAGES: list[Callable[[Path, str], None]] = [
    *(_truncated, _flipped, _emptied, _missing, _garbage, _folder, _not_utf8, _older_version),
    _edited,
]
FILES = ["tensors.safetensors", "best.safetensors", "counters.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_falls_back_and_says_so(
    store: StateStore, damage: Callable[[Path, str], None], name: str
) -> None:
    save(store, 10, b"old best")
    save(store, 20, b"old best")  # the same best weights: two copies, not two names of one
    store.model.write_bytes(b"newer best, which the older state knows nothing of")
    damage(newest(store), name)
    step, remarks = loaded(store)
    assert step == 10
    assert len(remarks) == 1 and "damaged" in remarks[0] and "\n" not in remarks[0]
    assert newest(store).name in remarks[0]
    assert store.model.read_bytes() == b"old best"


def test_in_place_damage_of_the_model_file_reaches_no_generation(store: StateStore) -> None:
    save(store, 10, b"best weights")
    save(store, 20, None)
    with store.model.open("r+b") as stream:
        stream.write(b"XXXX")
    save(store, 30, b"best weights")
    with store.model.open("r+b") as stream:
        stream.write(b"XXXX")
    assert loaded(store) == (30, [])
    assert store.model.read_bytes() == b"best weights"
    with store.model.open("r+b") as stream:  # nor after it was put back
        stream.write(b"XXXX")
    assert loaded(store) == (30, [])


def test_all_damaged_says_so_and_starts_at_step_0(store: StateStore) -> None:
    save(store, 10)
    save(store, 20)
    for folder in store.folder.iterdir():
        _flipped(folder, "tensors.safetensors")
    found = store.load()
    assert found is not None
    tensors, counters, remarks = found
    assert tensors == {} and counters == Counters()
    assert len(remarks) == 3 and "no sound state" in remarks[-1]


def test_after_a_fall_back_the_next_saves_keep_two_sound_generations(store: StateStore) -> None:
    """A damaged folder stays the newest by name; it must not push out the sound ones."""
    save(store, 10)
    save(store, 30)
    _flipped(newest(store), "tensors.safetensors")
    assert loaded(store)[0] == 10
    save(store, 20)
    assert loaded(store) == (20, [])
    shutil.rmtree(newest(store))
    assert loaded(store) == (10, [])
    save(store, 20)
    save(store, 21)
    assert loaded(store) == (21, [])
    assert len(list(store.folder.iterdir())) == 2
    _flipped(newest(store), "tensors.safetensors")
    assert loaded(store)[0] == 20


def test_a_generation_saved_again_replaces_its_damaged_namesake(store: StateStore) -> None:
    save(store, 10)
    save(store, 20)
    _flipped(newest(store), "tensors.safetensors")
    assert loaded(store)[0] == 10
    save(store, 20)
    assert loaded(store) == (20, [])


def test_what_a_killed_process_left_half_written_is_not_taken_and_goes(store: StateStore) -> None:
    save(store, 10)
    torn = store.folder / ".step-000000015-epoch-00001.tmp"
    shutil.copytree(newest(store), torn)
    assert loaded(store) == (10, [])
    save(store, 20)
    assert not torn.exists()
    assert loaded(store) == (20, [])
