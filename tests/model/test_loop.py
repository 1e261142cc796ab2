"""The loop: the losses of a reference run, resume that changes nothing, and progress that can be read."""

import logging

import numpy as np
import pytest
import torch

from tests.unit.training.shapes import TASK, ignore, recipe, samples
from visionloop.errors import ConfigError, DataError, StageError
from visionloop.tasks import open_task
from visionloop.training import progress
from visionloop.training.checkpoints import Checkpoint
from visionloop.training.loop import EpochEnd, Shard, train
from visionloop.training.model import to_bytes
from visionloop.training.precision import choose
from visionloop.training.predict import torch_predictor
from visionloop.training.samples import Samples

# Written down from one run on an x86-64 CPU with torch 2.15: four epochs of five steps, float32, one thread.
LOSSES = [1.34139, 0.64240, 0.14500, 0.06301]
TOLERANCE = 0.02
"""Relative: other processors and versions round otherwise, and a change of the algorithm shows as far more."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_twenty_steps_give_the_losses_written_down() -> None:
    ends: list[EpochEnd] = []
    how = recipe(epochs=4, learning_rate=1e-3, augment=["shift", "erase"])
    train(Shard(samples(160), samples(40, 1)), how, report=ends.append)
    losses = [entry.values["train_loss"] for entry in ends[-1].state.history]
    assert losses == pytest.approx(LOSSES, rel=TOLERANCE)
    assert ends[-1].state.samples_seen == 4 * 160


def test_it_learns_and_the_seed_decides() -> None:
    shard, held_out = Shard(samples(256), samples(0)), samples(200, 9)
    first, again, other = (train(shard, recipe(seed=seed), report=ignore) for seed in (1, 1, 2))
    answers = torch_predictor(first, open_task(TASK))(held_out.images).probabilities
    assert (answers.argmax(1) == held_out.targets).mean() > 0.95
    assert np.allclose(answers.sum(1), 1.0, atol=1e-5)
    assert to_bytes(first) == to_bytes(again)
    assert to_bytes(first) != to_bytes(other)


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_run_that_goes_on_ends_where_it_would_have_ended(killed_after: int) -> None:
    shard, how = Shard(samples(128), samples(32, 1)), recipe(epochs=3, augment=["flip", "erase"])
    saved: list[Checkpoint] = []
    whole = train(shard, how, report=lambda end: saved.append(end.capture()))

    resumed: list[EpochEnd] = []
    second = train(shard, how, report=resumed.append, resume=saved[killed_after - 1])

    assert to_bytes(second) == to_bytes(whole)
    assert [end.state.epoch for end in resumed] == list(range(killed_after + 1, 4))
    kept = [entry.values for entry in resumed[-1].state.history]
    assert kept == [entry.values for entry in saved[-1].state.history]
    assert resumed[-1].state.samples_seen == saved[-1].state.samples_seen
    assert resumed[-1].state.seconds > saved[killed_after - 1].state.seconds


def test_validation_is_measured_on_the_validation_split() -> None:
    ends: list[EpochEnd] = []
    good = samples(64, 5)
    wrong = Samples(good.images, (good.targets + 1) % 4)
    train(Shard(samples(256), wrong), recipe(), report=ends.append)
    assert ends[-1].state.history[-1].values["validation_accuracy"] < 0.1


def test_a_loss_that_diverges_is_a_fault_with_a_way_out() -> None:
    with pytest.raises(StageError, match=r"became nan|became inf.*learning_rate"):
        train(Shard(samples(64), samples(0)), recipe(learning_rate=1e30), report=ignore)


def test_no_samples_is_a_fault() -> None:
    with pytest.raises(DataError, match="too few"):
        train(Shard(samples(0), samples(0)), recipe(), report=ignore)


def test_progress_has_rate_and_time_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        train(Shard(samples(64), samples(0)), recipe(), report=ignore)
    lines = [record.getMessage() for record in caplog.records if "images/s" in record.getMessage()]
    assert lines[0].startswith("epoch 1/2, 25 %") and " s left" in lines[0]
    assert lines[-1].startswith("epoch 2/2, 100 %") and " 0 s left" in lines[-1]


def test_bf16_is_taken_or_refused_by_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [choose(wanted, "cpu").name for wanted in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert choose("auto", "cpu").name == "fp32"
    with pytest.raises(ConfigError, match="auto or fp32"):
        choose("bf16", "cpu")
