"""Checkpoints: the last whole one is found, whatever was cut off or damaged after it."""

from pathlib import Path

import pytest
import torch

from visionloop.errors import IntegrityError, NotFound
from visionloop.stores.objects import FileObjects
from visionloop.training.checkpoints import Checkpoint, Checkpoints, EpochMetrics, TrainState, pack, unpack


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "store")


@pytest.fixture
def checkpoints(objects: FileObjects) -> Checkpoints:
    return Checkpoints(objects, "p/checkpoints/r/")


def checkpoint(epoch: int) -> Checkpoint:
    history = [EpochMetrics(epoch=n, at_ms=n, values={"train_loss": 1.0 / n}) for n in range(1, epoch + 1)]
    state = TrainState(
        epoch=epoch, epochs=9, samples_seen=epoch, seconds=1.5, device="cpu", precision="fp32", history=history
    )
    return Checkpoint(state=state, weights=b"w%d" % epoch, optimizer=b"o%d" % epoch)


def test_there_is_none_at_first(checkpoints: Checkpoints) -> None:
    assert checkpoints.last() is None


def test_the_newest_is_read_back_whole(checkpoints: Checkpoints, objects: FileObjects) -> None:
    for epoch in (1, 2, 10):
        uri = checkpoints.save(checkpoint(epoch))
    last = checkpoints.last()
    assert last is not None and (last.weights, last.optimizer, last.state.epoch) == (b"w10", b"o10", 10)
    assert last.state.history == checkpoint(10).state.history
    assert uri == checkpoints.uri(10) and objects.get(objects.key(uri)) == b"w10"


def test_only_the_last_two_are_kept(checkpoints: Checkpoints, objects: FileObjects) -> None:
    for epoch in (1, 2, 3):
        checkpoints.save(checkpoint(epoch))
    assert {item.key.split("/")[3] for item in objects.scan("p/")} == {"epoch-000002", "epoch-000003"}


def test_one_without_a_state_was_never_finished(checkpoints: Checkpoints, objects: FileObjects) -> None:
    checkpoints.save(checkpoint(1))
    objects.put("p/checkpoints/r/epoch-000002/weights.safetensors", b"w2")
    objects.put("p/checkpoints/r/epoch-000002/optimizer.pt", b"o2")
    last = checkpoints.last()
    assert last is not None and last.state.epoch == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_one_is_passed_over(checkpoints: Checkpoints, objects: FileObjects, name: str) -> None:
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    objects.put(f"p/checkpoints/r/epoch-000002/{name}", b"{}")
    last = checkpoints.last()
    assert last is not None and last.state.epoch == 1
    with pytest.raises(IntegrityError):
        checkpoints.read(2)


def test_one_that_lacks_a_file_is_passed_over(checkpoints: Checkpoints, objects: FileObjects) -> None:
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    objects.delete("p/checkpoints/r/epoch-000002/optimizer.pt")
    last = checkpoints.last()
    assert last is not None and last.state.epoch == 1
    with pytest.raises(NotFound):
        checkpoints.read(3)


def test_states_are_read_without_running_code() -> None:
    assert torch.equal(unpack(pack({"a": torch.ones(2), "n": 3}))["a"], torch.ones(2))
    with pytest.raises(Exception, match="Weights only load failed"):
        unpack(pack({"a": Path("x")}))
