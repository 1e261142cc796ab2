"""Several projects' candidates share the canary lane: what one does to its server is held against no other."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.errors import StoreError
from visionloop.records import Release, RolloutState
from visionloop.stages import release
from visionloop.stages.release import Inputs

from .test_release import check
from .test_shadow import capture

ANEW = (
    "the canary lane's server was started anew, and other projects' models were in it: no verdict about version 2 of p"
)
AWAY = "the canary lane's server is away, and other projects' models were in it: no verdict about version 2 of p"
STAGES = {"preflight": release.preflight, "shadow": release.shadow, "canary": release.canary}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Version 1 serves, and was asked before; another project's candidate is in the canary lane."""
    with World(tmp_path, project=PROJECT.replace("shadow_images: 0", "shadow_images: 150")).serving() as made:
        made.release(1)
        capture(made, 1_000)
        capture(made, 2_000)
        made.canary.others = 1
        yield made


def begun(world: World, stage: str) -> Inputs:
    """A release of a good candidate that has come so far."""
    inputs = world.inputs(world.candidate(2, bias=0.1))
    for name, function in STAGES.items():
        if name == stage:
            return inputs
        assert isinstance(function(world.project, inputs, world.stores), RolloutState)
    raise AssertionError(stage)


def after(world: World, requests: int, deed: Callable[[], object]) -> None:
    """Do it once, when so many more of the loop's questions about memory and the model have come."""
    left = [requests]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                deed()
            return real(*arguments, **options)

        return call

    world.canary.infer = counted(world.canary.infer)  # type: ignore[method-assign]
    world.canary.memory = counted(world.canary.memory)  # type: ignore[method-assign]


@pytest.mark.parametrize(("stage", "requests"), [("preflight", 60), ("shadow", 3), ("canary", 2)])
def test_a_server_that_another_model_ended_is_no_verdict_and_the_step_goes_on_when_it_is_tried_again(
    world: World, stage: str, requests: int
) -> None:
    inputs = begun(world, stage)
    after(world, requests, world.canary.start_anew)
    with pytest.raises(StoreError, match=ANEW):
        STAGES[stage](world.project, inputs, world.stores)
    assert world.releases()[-1].version == 1
    done = world.go(inputs, world.connect())
    assert (done.outcome, done.version) == ("promoted", 2), done.reason
    assert len({one.server_started for one in done.memory[1:]}) == 1
    check(world, 2)


def test_a_model_that_has_left_may_still_be_why_the_server_ends(world: World) -> None:
    inputs = begun(world, "canary")
    world.canary.others = 0  # its release is over, its dead process is not collected yet
    after(world, 2, world.canary.start_anew)
    with pytest.raises(StoreError, match=ANEW):
        release.canary(world.project, inputs, world.stores)
    after(world, 2, world.canary.start_anew)
    done = release.canary(world.project, inputs, world.connect())
    assert isinstance(done, Release)  # in the new server nobody else was seen
    assert "the canary's server process died and was started anew" in done.reason


@pytest.mark.parametrize(("stage", "requests"), [("preflight", 60), ("shadow", 3), ("canary", 2)])
def test_where_it_was_alone_it_was_its_own_fault(world: World, stage: str, requests: int) -> None:
    world.canary.others = 0
    inputs = begun(world, stage)
    after(world, requests, world.canary.start_anew)
    done = STAGES[stage](world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert re.search(r"the canary's server process died and was started anew: it had been asked \d+ times", done.reason)


@pytest.mark.parametrize(("stage", "requests"), [("preflight", 60), ("shadow", 3), ("canary", 2)])
def test_where_its_own_process_died_the_others_are_no_excuse(world: World, stage: str, requests: int) -> None:
    inputs = begun(world, stage)
    after(world, requests, lambda: setattr(world.canary, "dead", True))
    done = STAGES[stage](world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert re.search(r"the canary's server process died: it had been asked \d+ times", done.reason)


@pytest.mark.parametrize(("stage", "requests"), [("preflight", 60), ("shadow", 3), ("canary", 2)])
def test_a_server_that_is_away_is_waited_for(world: World, stage: str, requests: int) -> None:
    inputs = begun(world, stage)
    after(world, requests, lambda: setattr(world.canary, "down", True))
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{AWAY}|canary lane at nowhere: down"):
            STAGES[stage](world.project, inputs, world.connect())
    assert world.releases()[-1].version == 1
    world.canary.start_anew()
    assert world.go(inputs, world.connect()).outcome == "promoted"


def test_a_candidate_that_the_new_server_has_not_loaded_is_loaded_by_preflight(world: World) -> None:
    inputs = begun(world, "canary")
    world.canary.entry("p").remove()
    world.canary.start_anew()
    for _ in range(2):
        with pytest.raises(StoreError, match="try again; it is not loaded again, which preflight does"):
            release.canary(world.project, inputs, world.connect())
    assert world.go(inputs, world.connect()).outcome == "promoted"
