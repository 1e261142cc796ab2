"""The shadow on live traffic: both lanes are asked, clients hear the champion, and a bad candidate goes no further."""

import re

import pytest

from visionloop.stages.release import mirror

from .conftest import Shared, make_project
from .world import Traffic, World

IMAGES = 300


@pytest.fixture(scope="module")
def here(running: Shared) -> World:
    """Version 1 serves, and nobody has asked it yet."""
    project = make_project(running, "live")
    policy = project.release.model_copy(update={"shadow_images": IMAGES, "shadow_seconds": 30.0})
    monitoring = project.monitoring.model_copy(update={"capture_percent": 100.0})
    made = World(running, project.model_copy(update={"release": policy, "monitoring": monitoring}))
    made.release(1)
    return made


def test_where_nobody_asks_it_says_so_and_goes_on(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "QUIET_SECONDS", 1.0)
    done = here.release(2, bias=0.1)
    assert done.outcome == "promoted" and done.shadow is not None
    assert (done.shadow.source, done.shadow.images) == ("none", 0)


def test_a_good_candidate_answers_what_clients_ask_meanwhile(here: World) -> None:
    with Traffic(here) as traffic:
        done = here.release(3)
    assert done.outcome == "promoted" and done.shadow is not None
    seen = done.shadow
    assert (seen.source, seen.failed) == ("mirrored", 0)
    assert seen.compared == seen.images == seen.mirrored >= IMAGES
    assert traffic.failures == []


def test_a_candidate_that_answers_otherwise_is_stopped_before_any_client_hears_it(here: World) -> None:
    with Traffic(here, pause_seconds=0.2) as traffic:
        done = here.release(4, flipped=True)
    assert done.outcome == "rejected" and done.shadow is not None
    seen = done.shadow
    assert re.search(r"in shadow: of \d+ mirrored images the candidate answers \d+ with another label", done.reason)
    assert seen.images < IMAGES  # as soon as that was sure
    assert done.steps == []
    assert traffic.failures == [] and set(traffic.seen) == {("stable", 3)}


def test_little_live_traffic_is_eked_out_with_what_was_captured(here: World) -> None:
    policy = here.project.release.model_copy(update={"shadow_seconds": 3.0})
    here.project = here.project.model_copy(update={"release": policy})
    with Traffic(here, pause_seconds=0.1):
        done = here.release(5, bias=0.1)
    seen = done.shadow
    assert seen is not None and seen.source == "replayed"
    assert 0 < seen.mirrored < seen.images == seen.compared <= IMAGES
