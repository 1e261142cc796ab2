"""Two processes with one release: whatever the other does, and at whichever change of the first it comes between.

On lanes of this process; here and not among the unit tests for its half a minute.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.serving.lanes import World
from tests.unit.stages.test_release import BACK, check
from tests.unit.stages.test_release_doctor import mend
from visionloop.errors import StageError, StoreError
from visionloop.stages import release


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).serving() as made:
        yield made


def abort(world: World) -> None:
    release.abort(world.project, BACK, world.connect())


def roll_back(world: World) -> None:
    release.rollback(world.project, BACK, world.connect())


def release_a_newer_one(world: World) -> None:
    world.go(world.inputs(world.candidate(3, bias=0.2)), world.connect())


def call_off(world: World) -> None:
    release.call_off(world.project, world.inputs(world.candidate(2, bias=0.1)), world.connect())


@pytest.mark.parametrize("other", [abort, roll_back, release_a_newer_one, call_off, mend])
@pytest.mark.parametrize("well", [True, False])
def test_somebody_else_comes_between_at_each_change(
    world: World, other: Callable[[World], None], well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the other does, and whenever: no traffic stays with a canary, and all that is recorded is so."""
    monkeypatch.setattr("visionloop.stores.lane_lock.WAIT_SECONDS", 0.01)
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1 if well else -0.9, golden={"bias": 0.1}))
    world.keep()
    for number in range(1, 100):
        world.again()
        came: list[int] = []

        def between() -> None:
            came.append(number)  # noqa: B023
            with suppress(StageError, StoreError):
                other(world)

        with suppress(StageError, StoreError):
            world.go(inputs, world.connect(dies_after=number, then=between))
        with suppress(StageError):
            world.go(inputs, world.connect())
        serving = max((r for r in world.releases() if r.outcome == "promoted"), key=lambda one: one.created_at)
        assert release.examine(world.project, world.stores) == [], number
        check(world, serving.version)
        if not came:
            assert number > 4
            return
