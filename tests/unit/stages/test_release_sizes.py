"""A version is measured as it was packaged, whatever the project file says by now; and as long as its clients wait."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.errors import StoreError
from visionloop.project import Project, parse_project
from visionloop.records import Release, RolloutState
from visionloop.serving.golden import extremes
from visionloop.stages import release
from visionloop.stages.release import RollbackInputs, checks
from visionloop.stores.triton import DEADLINE_SECONDS, Late, ModelRefused

from .test_release import check

BACK = RollbackInputs(by="sre", reason="complaints", to_version=1)


def edited(old: str, new: str) -> Project:
    """The project file, with a part of it replaced."""
    assert old in PROJECT
    return parse_project(PROJECT.replace(old, new), Path("project.yaml"))


def batches_of(size: int) -> Project:
    return edited("timeout_ms: 60000", f"timeout_ms: 60000, max_batch_size: {size}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Version 1 was packaged with batches of two images, and serves."""
    with World(tmp_path).serving() as made:
        made.project = batches_of(2)
        made.release(1)
        yield made


@pytest.mark.parametrize(
    "now",
    [
        batches_of(64),
        edited("timeout_ms: 60000", "timeout_ms: 60000, instances: 4"),
        edited("[dark, bright]", "[dark, middle, bright]"),
        edited("height: 8, width: 8", "height: 16, width: 32"),
    ],
    ids=["batch", "instances", "classes", "image"],
)
def test_an_old_version_comes_back_whatever_the_project_file_says_now(world: World, now: Project) -> None:
    world.release(2, bias=0.1)
    world.project = now
    assert release.rollback(world.project, BACK, world.stores).version == 1
    check(world, 1)


def test_a_larger_batch_than_the_champion_takes_is_asked_of_the_candidate_alone(world: World) -> None:
    world.project = batches_of(64)
    done = world.release(2, bias=0.1)
    assert done.outcome == "promoted", done.reason
    assert done.cost is not None and done.cost.ratio is not None
    assert done.cost.batch_images == 2
    assert set(world.stable.runs["p", 1]) == {2}
    assert 64 in world.canary.runs["p", 2]


def test_a_candidate_that_was_packaged_before_the_file_allowed_more_is_no_worse_for_it(world: World) -> None:
    inputs = world.inputs(world.candidate(2, bias=0.1))
    world.project = batches_of(64)
    assert world.go(inputs).outcome == "promoted"


def test_a_version_for_other_images_is_another_project(world: World) -> None:
    """Clients' requests would fit one lane only."""
    world.project = edited("height: 8, width: 8", "height: 16, width: 8")
    done = world.go(world.inputs(world.candidate(2)))
    assert (done.outcome, done.reason) == (
        "rejected",
        "it takes images of 16x8x1, version 1, which serves, of 8x8x1: clients' requests fit one of them only, so "
        "release it as another project",
    )
    check(world, 1)


# --- what it costs is no verdict


@pytest.mark.parametrize("fault", ["dead", "down", "late"])
@pytest.mark.parametrize("lane", ["stable", "canary"])
def test_a_lane_that_fails_while_cost_is_measured_leaves_no_figure(world: World, lane: str, fault: str) -> None:
    at = getattr(world, lane)
    real = at.batches

    def fails_from_here(*arguments: Any) -> Any:
        setattr(at, fault, True)
        return real(*arguments)

    at.batches = fails_from_here
    state = release.preflight(world.project, world.inputs(world.candidate(2)), world.stores)
    assert isinstance(state, RolloutState)
    assert (state.phase, state.cost) == ("canary", None)


# --- how long an answer may take


@pytest.mark.parametrize(("timeout_ms", "waits"), [(300, DEADLINE_SECONDS), (10_000, 10.0), (60_000, 60.0)])
def test_a_lane_is_waited_for_as_long_as_a_client_would(tmp_path: Path, timeout_ms: int, waits: float) -> None:
    with World(tmp_path).serving() as world:
        inputs, asked, real = world.inputs(world.candidate(1)), [], world.canary.infer
        world.project = edited("timeout_ms: 60000", f"timeout_ms: {timeout_ms}")

        def infer(*arguments: Any, deadline_seconds: float, **options: Any) -> Any:
            asked.append(deadline_seconds)
            return real(*arguments, deadline_seconds=deadline_seconds, **options)

        world.canary.infer = infer  # type: ignore[method-assign]
        release.preflight(world.project, inputs, world.stores)
    assert set(asked) == {waits}


def test_a_candidate_that_no_client_would_wait_for_is_refused(world: World) -> None:
    inputs = world.inputs(world.candidate(2))
    world.canary.late = True
    done = release.preflight(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert (done.outcome, done.reason) == (
        "rejected",
        "version 2 in the canary lane takes more than 60.0 s for 2 images, which clients may send in one request: "
        "while there is a canary a lane has 20.0 s, a third of serving.timeout_ms",
    )


@pytest.mark.parametrize(("timeout_ms", "outcome"), [(300, "rejected"), (1_200, "promoted")])
def test_the_fastest_of_its_largest_requests_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_ms: int, outcome: str
) -> None:
    monkeypatch.setattr(checks, "ENDURED_SECONDS", 0.3)
    with World(tmp_path).serving() as world:
        world.project = edited("timeout_ms: 60000", f"timeout_ms: {timeout_ms}")
        real = world.canary.infer

        def infer(*arguments: Any, **options: Any) -> Any:
            time.sleep(0.12)
            return real(*arguments, **options)

        world.canary.infer = infer  # type: ignore[method-assign]
        done = world.release(1)
    assert done.outcome == outcome
    if outcome == "rejected":
        assert re.fullmatch(
            r"version 1 in the canary lane takes more than 0.1 s for 64 images, which clients may send in one request: "
            r"while there is a canary a lane has 0.1 s, a third of serving.timeout_ms",
            done.reason,
        )


def test_a_frozen_server_is_no_verdict(world: World) -> None:
    inputs = world.inputs(world.candidate(2))
    world.canary.late, real = True, world.canary.ready
    world.canary.ready = lambda **options: False  # type: ignore[method-assign]
    with pytest.raises(Late, match="no answer in 60 s"):
        release.preflight(world.project, inputs, world.stores)
    world.canary.late, world.canary.ready = False, real  # type: ignore[method-assign]
    assert world.go(inputs).outcome == "promoted"


def test_a_champion_that_answers_late_is_no_verdict(world: World) -> None:
    inputs = world.inputs(world.candidate(2))
    world.stable.late = True
    with pytest.raises(StoreError, match="stable lane at nowhere: no answer"):
        release.preflight(world.project, inputs, world.stores)


def test_the_lanes_of_these_tests_refuse_as_triton_does(world: World) -> None:
    with pytest.raises(ModelRefused, match="is none of its batches"):
        world.stable.infer("p", extremes(8, 8, 1), version=1)
    with pytest.raises(ModelRefused, match="is none of its batches"):
        world.stable.infer("p", extremes(16, 8, 1)[:1], version=1)
