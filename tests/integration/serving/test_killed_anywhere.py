"""A release, or a rollback, of which a process dies at any change that it makes: whoever runs it again finishes it.

On lanes of this process; here and not among the unit tests for its quarter of a minute.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.lanes import World
from tests.unit.stages.test_release import BACK, check
from tests.unit.stages.test_release_doctor import mend, said
from visionloop.stages import release


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).serving() as made:
        yield made


def test_killed_after_each_change_and_run_again(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    for _ in world.killed_at_each_change(lambda stores: world.go(inputs, stores)):
        assert world.stable.served("p") in (1, 2)  # somebody always answers
        assert world.stable.loaded["p"][0] == world.stable.entry("p").version()
        done = world.go(inputs, world.connect())
        assert (done.outcome, done.version, done.previous_version) == ("promoted", 2, 1)
        assert [step.canary_percent for step in done.steps] == [50]
        assert [r.version for r in world.releases()] == [1, 2]
        assert world.registry.tags[2]["visionloop.release"] == world.stores.ledger.uri(done)
        check(world, 2)


def test_a_first_release_that_is_killed_too(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    for _ in world.killed_at_each_change(lambda stores: world.go(inputs, stores)):
        world.go(inputs, world.connect())
        assert [r.version for r in world.releases()] == [1]
        check(world, 1)


def test_a_release_that_fails_and_is_killed_at_any_change_leaves_the_old_version(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, golden={"bias": 0.9}, bias=-0.9))
    for _ in world.killed_at_each_change(lambda stores: world.go(inputs, stores)):
        assert world.go(inputs, world.connect()).outcome == "rejected"
        assert [r.outcome for r in world.releases()] == ["promoted", "rejected"]
        check(world, 1)


def test_a_rollback_that_is_killed_at_any_change_is_finished_by_the_next(world: World) -> None:
    back = BACK.model_copy(update={"to_version": 1})
    world.release(1)
    world.release(2, bias=0.1)
    for _ in world.killed_at_each_change(lambda stores: release.rollback(world.project, back, stores)):
        done = release.rollback(world.project, back, world.connect())
        assert (done.version, done.outcome) == (1, "promoted")
        assert len(world.releases()) == 3
        check(world, 1)


def test_what_any_killed_release_leaves_is_named_or_goes_on(world: World) -> None:
    """Whatever is left: after the doctor, and the release again, everything agrees."""
    world.release(1)
    world.release(2, bias=0.1)
    inputs = world.inputs(world.candidate(3, bias=0.2))
    for _ in world.killed_at_each_change(lambda stores: world.go(inputs, stores)):
        mend(world)
        world.go(inputs, world.connect())
        assert said(world) == []
        check(world, 3)
