"""Tuning gives way to a release, also to one that begins while it measures; the lane keeps nothing of it."""

from pathlib import Path

import pytest

from tests.unit.serving.lanes import World
from visionloop.errors import StageError
from visionloop.records import TunedPoint, Tuning
from visionloop.stages import release, tune
from visionloop.stores.load import Answered

INPUTS = tune.Inputs(target_p99_ms=50.0, rounds=2, seconds=0.01, cores=2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    with World(tmp_path).serving() as made:
        made.release(1)
        return made


class Measuring:
    """The load generator, after whose n-th measurement a release has begun."""

    def __init__(self, world: World, begins_in: int | None) -> None:
        self._world, self._begins_in = world, begins_in
        self.asked = 0

    def __call__(self, *arguments: object, **options: object) -> Answered:
        assert self._world.canary.sent == [tune.NAME]
        self.asked += 1
        if self.asked == self._begins_in:
            release.preflight(self._world.project, self._world.inputs(self._world.candidate(2)), self._world.stores)
        return Answered(latencies_ms=[1.0, 2.0], failures=0, seconds=0.01)


def test_every_setting_is_measured_in_every_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring(world, None)
    monkeypatch.setattr(tune, "closed_loop", measuring)
    found = tune.run(world.project, INPUTS, world.stores)
    assert measuring.asked == 2 * len(tune.plan(INPUTS)) == 2 * len(found.points)
    assert world.canary.sent == []


@pytest.mark.parametrize("begins_in", [1, 5, 2 * len(tune.plan(INPUTS))])
def test_a_release_that_begins_meanwhile_goes_first(
    world: World, monkeypatch: pytest.MonkeyPatch, begins_in: int
) -> None:
    measuring, heard = Measuring(world, begins_in), list[TunedPoint]()
    monkeypatch.setattr(tune, "closed_loop", measuring)
    with pytest.raises(StageError, match="the canary lane is in use by p: tune when its release has ended"):
        tune.run(world.project, INPUTS, world.stores, report=heard.append)
    assert (measuring.asked, len(heard)) == (begins_in, begins_in - 1)
    assert (world.canary.sent, world.canary.served("p")) == ([], 2)
    assert world.stores.ledger.all(Tuning, "p") == []
