"""The doctor sees what a killed process or a helping hand left, and puts right what needs no decision."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.errors import StoreError
from visionloop.records import Candidate
from visionloop.stages import release

from .test_release import check


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, project=PROJECT).serving() as made:
        made.release(1)
        made.release(2, bias=0.1)
        yield made


def said(world: World) -> list[str]:
    return [difference.text for difference in release.examine(world.project, world.connect())]


def mend(world: World) -> None:
    for difference in release.examine(world.project, world.connect()):
        release.repair(world.project, difference, world.connect())


def test_after_a_release_all_agree(world: World) -> None:
    assert said(world) == []


def test_a_hand_that_changed_everything(world: World) -> None:
    candidate = world.stores.ledger.get(Candidate, world.releases()[0].candidate)
    world.stable.loaded["p"] = (1, {})
    world.registry.alias = 1
    world.routes.set(world.project, stable=30, canary=70)
    world.canary.loaded["p"] = (candidate.version, {})
    assert said(world) == [
        "the stable lane serves version 1, released is version 2",
        "the registry's champion is version 1, released is version 2",
        "no release is in progress, and the canary lane gets 70 % of the traffic",
        "no release is in progress, and the canary lane holds version 1",
    ]
    mend(world)
    assert said(world) == []
    check(world, 2)


def test_requests_that_are_mirrored_for_nobody(world: World) -> None:
    world.routes.set(world.project, stable=100, canary=0, mirrored=True)
    assert said(world) == ["no release is in progress, and captured requests are mirrored to the canary lane"]
    mend(world)
    assert said(world) == []
    check(world, 2)


def test_a_lane_that_lost_its_model(world: World) -> None:
    world.stable.loaded.clear()
    world.stable.entry("p").remove()
    assert said(world) == ["the stable lane serves nothing, released is version 2"]
    mend(world)
    check(world, 2)


def test_a_damaged_artifact_is_named_and_nothing_is_changed(world: World) -> None:
    candidate = world.stores.ledger.get(Candidate, world.releases()[-1].candidate)
    key = world.stores.objects.key(candidate.artifacts["model.onnx"].uri)
    world.stores.objects.put(key, b"rotten")
    assert said(world) == ["model.onnx of the released version is missing or changed in the object store"]
    mend(world)
    check(world, 2)


def test_a_canary_that_lost_its_model_needs_a_decision(world: World) -> None:
    release.preflight(world.project, world.inputs(world.candidate(3)), world.stores)
    assert said(world) == []
    world.canary.loaded.clear()
    assert said(world) == ["version 3 is in its canary, and the canary lane serves nothing"]
    mend(world)
    assert said(world) != []


def test_a_server_that_is_down_is_an_error(world: World) -> None:
    world.stable.down = True
    with pytest.raises(StoreError, match="stable lane"):
        release.examine(world.project, world.connect())
