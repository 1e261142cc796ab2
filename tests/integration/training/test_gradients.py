"""Two processes that share a global batch by torch.distributed take the steps that one process takes alone."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from tests.unit.training.shapes import ignore, recipe, samples
from visionloop.training.loop import EpochEnd, Recipe, Shard, train

SECTIONS = {"epochs": 2, "batch_size": 32, "augment": ["shift", "erase"], "channels_last": False}
COUNT, HELD_OUT = 200, 41
"""200 are six whole batches of 32; 41 cannot be halved."""


def both(rank: int, workers: int, folder: str) -> None:
    """Train as one of so many workers; leave weights and losses in the folder."""
    torch.set_num_threads(1)
    if workers > 1:
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", rendezvous, rank=rank, world_size=workers, timeout=timedelta(seconds=60))
    ends: list[EpochEnd] = []
    shard = Shard(samples(COUNT), samples(HELD_OUT, 1), rank=rank, workers=workers)
    how: Recipe = recipe(**SECTIONS)
    model = train(shard, how, report=ends.append)
    history = [entry.values for entry in ends[-1].state.history]
    found = {"weights": model.state_dict(), "history": history, "seen": ends[-1].state.samples_seen}
    torch.save(found, f"{folder}/{workers}-{rank}.pt")
    if workers > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    both(0, 1, str(made))
    processes.spawn(both, args=(2, str(made)), nprocs=2)
    return made


def test_the_weights_are_the_same(folder: Path) -> None:
    alone, first, second = (torch.load(folder / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-5)


def test_so_are_losses_and_accuracies(folder: Path) -> None:
    alone, first, second = (torch.load(folder / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert first["history"] == second["history"] and len(first["history"]) == 2
    for mine, theirs in zip(first["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert first["seen"] == alone["seen"] == 2 * 6 * 32


def test_a_worker_alone_would_not_have_got_there(folder: Path) -> None:
    """Half of each batch gives other weights: the test above would see it."""
    torch.set_num_threads(1)
    halved = train(Shard(samples(COUNT), samples(0)), recipe(**{**SECTIONS, "batch_size": 16}), report=ignore)
    whole = torch.load(folder / "1-0.pt")["weights"]
    assert any(not torch.allclose(weight, whole[name], atol=1e-2) for name, weight in halved.state_dict().items())
