"""How sure a canary is of what clients ask it ends the release; what cannot be read says nothing."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.records import Release, RolloutState
from visionloop.stages import release
from visionloop.stages.release import Inputs

from .test_shadow import capture


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, project=PROJECT + "monitoring: {capture_percent: 50}\n").serving() as made:
        made.release(1)
        yield made


@pytest.fixture
def underway(world: World) -> Inputs:
    return world.underway()


def soon() -> int:
    """A moment after the canary begins, in ms."""
    return int(time.time() * 1000) + 2_000


@pytest.mark.parametrize(("confidence", "ends"), [(0.4, True), (0.9, False)])
def test_answers_to_clients_count(world: World, underway: Inputs, confidence: float, ends: bool) -> None:
    before = int(time.time() * 1000) - 60_000
    capture(world, before, lane="canary", version=2, confidence=0.1)  # before this canary began
    capture(world, soon(), lane="canary", version=2, confidence=confidence)
    capture(world, soon() + 1, lane="stable", version=1, confidence=0.9)
    done = release.canary(world.project, underway, world.stores)
    if ends:
        assert isinstance(done, Release)
        assert done.reason.startswith("at 50 %: 100 of 100 of the canary's answers to clients were unsure")
    else:
        assert isinstance(done, RolloutState)
        done = release.promote(world.project, underway, world.stores)
        assert done.outcome == "promoted"
    assert done.live is not None
    found = (done.live.canary, done.live.canary_unsure, done.live.stable, done.live.stable_unsure)
    assert found == (100, 100 if ends else 0, 100, 0)


def test_a_file_that_is_no_capture_says_nothing(world: World, underway: Inputs) -> None:
    key = world.stores.objects.key(capture(world, soon(), lane="canary", version=2))
    world.stores.objects.put(key, b"no parquet")
    assert isinstance(release.canary(world.project, underway, world.stores), RolloutState)


def test_where_nothing_is_captured_nothing_is_looked_for(tmp_path: Path) -> None:
    with World(tmp_path, project=PROJECT + "monitoring: {capture_percent: 0}\n").serving() as world:
        assert world.release(1).live is None
        assert world.release(2, bias=0.1).live is None
