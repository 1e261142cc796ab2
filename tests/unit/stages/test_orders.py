"""What people may ask of a release in progress, and that it obeys: paused it keeps its share and goes no further."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.unit.serving.endpoint import Failed
from tests.unit.serving.lanes import World
from visionloop.errors import StageError
from visionloop.records import Release, RolloutState
from visionloop.stages import release
from visionloop.stages.release import Inputs, RollbackInputs
from visionloop.stores.routes import Weights

WHY = "the line is down"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).serving() as made:
        made.release(1)
        yield made


@pytest.fixture
def underway(world: World) -> Inputs:
    """A release that is ready for its canary."""
    return world.underway()


class Worker:
    """The task that goes through the canary, in a thread of its own."""

    def __init__(self, world: World, inputs: Inputs) -> None:
        self.result: list[RolloutState | Release] = []
        self._thread = threading.Thread(target=self._run, args=(world, inputs), daemon=True)
        self._thread.start()

    def _run(self, world: World, inputs: Inputs) -> None:
        self.result.append(release.canary(world.project, inputs, world.connect()))

    def end(self) -> RolloutState | Release:
        self._thread.join(20)
        return self.result[0]

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def until(holds: object, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.01)


def order(world: World, verb: str, why: str = WHY) -> None:
    release.order(world.project, verb, "ann", why, world.stores)  # type: ignore[arg-type]


def test_a_paused_canary_gets_no_traffic_until_it_is_resumed(
    world: World, underway: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionloop.stages.release.steps.WATCH_SECONDS", 0.01)
    order(world, "pause")
    worker = Worker(world, underway)
    with pytest.raises(StageError, match="paused already"):
        order(world, "pause")
    time.sleep(0.2)
    assert worker.waits
    assert world.routes.current("p") == Weights(100, 0)
    order(world, "resume", "the line is up")
    done = worker.end()
    assert isinstance(done, RolloutState)
    assert done.phase == "promoting"
    found = release.promote(world.project, underway, world.stores)
    assert [(one.verb, one.by, one.reason) for one in found.orders] == [
        ("pause", "ann", WHY),
        ("resume", "ann", "the line is up"),
    ]


def test_a_pause_in_the_middle_keeps_the_share_and_a_fault_still_ends_it(
    world: World, underway: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionloop.stages.release.steps.WATCH_SECONDS", 0.01)
    world.project = world.project.model_copy(
        update={"release": world.project.release.model_copy(update={"step_requests": 500, "max_probes": 5_000})}
    )
    worker = Worker(world, underway)
    until(lambda: release.status(world.project, world.stores).findings[0].canary[1] > 0)
    order(world, "pause")
    until(lambda: release.status(world.project, world.stores).paused)
    time.sleep(0.2)
    assert worker.waits
    assert world.routes.current("p") == Weights(50, 50)
    world.routes.errors["canary"] += 5_000  # live traffic: the loop sends nothing meanwhile
    done = worker.end()
    assert isinstance(done, Release)
    assert done.outcome == "rolled_back"
    assert "of the canary's requests failed" in done.reason
    assert world.routes.current("p") == Weights(100, 0)
    assert world.stable.served("p") == 1


def test_promotion_by_order_is_recorded_with_who_and_why(world: World, underway: Inputs) -> None:
    order(world, "promote", "the old one is worse")
    state = release.canary(world.project, underway, world.stores)
    assert isinstance(state, RolloutState)
    assert (state.phase, state.steps) == ("promoting", [])
    done = release.promote(world.project, underway, world.stores)
    assert (done.outcome, done.version) == ("promoted", 2)
    assert done.reason.startswith("promoted early by ann: the old one is worse; canary steps passed: 0")


def test_no_order_promotes_a_canary_that_fails(world: World, underway: Inputs) -> None:
    world.broken["canary"] = Failed(grpc.StatusCode.INTERNAL, "boom", "canary")
    first = release.canary(world.project, underway, world.stores)
    assert isinstance(first, Release)
    assert first.outcome == "rolled_back"
    with pytest.raises(StageError, match="no release of p is in progress"):
        order(world, "promote")


@pytest.mark.parametrize(
    ("verb", "says"),
    [("promote", "is in its preflight: it can be promoted once its canary has begun"), ("resume", "is not paused")],
)
def test_orders_that_cannot_be_obeyed_are_refused(world: World, verb: str, says: str) -> None:
    inputs = world.inputs(world.candidate(2))
    world.stores.state.update(
        RolloutState,
        "p",
        "rollout",
        lambda _: RolloutState(candidate=inputs.candidate, approval=inputs.approval, phase="preflight"),
    )
    with pytest.raises(StageError, match=says):
        order(world, verb)


@pytest.mark.parametrize("verb", ["pause", "resume", "promote"])
def test_it_is_too_late_once_it_is_being_promoted(world: World, underway: Inputs, verb: str) -> None:
    release.canary(world.project, underway, world.stores)
    with pytest.raises(StageError, match=f"being promoted already: it is too late to {verb}"):
        order(world, verb)


def test_abort_leaves_the_old_version(world: World, underway: Inputs) -> None:
    back = RollbackInputs(by="ann", reason="wrong week")
    done = release.abort(world.project, back, world.stores)
    assert (done.outcome, done.version, done.reason) == ("rolled_back", 2, "called off by ann: wrong week")
    assert world.stable.served("p") == 1
    with pytest.raises(StageError, match="no release of p is in progress"):
        release.abort(world.project, back, world.stores)


def test_the_status_tells_what_is_known(world: World, underway: Inputs) -> None:
    before = release.status(world.project, world.stores)
    assert (before.serving, before.version, before.state.phase, before.paused) == (1, 2, "canary", False)
    release.canary(world.project, underway, world.stores)
    found = release.status(world.project, world.stores)
    assert [one.finding for one in found.findings] == ["fine", "fine", "fine"]
    errors = found.findings[0]
    assert errors.canary[0] == 0
    assert errors.canary[1] >= 20
    assert errors.bounds[0] == 0.0
    assert errors.bounds[1] <= 0.2
    release.promote(world.project, underway, world.stores)
    after = release.status(world.project, world.stores)
    assert (after.serving, after.version, after.findings) == (2, None, [])
