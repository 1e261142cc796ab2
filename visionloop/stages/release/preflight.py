"""Preflight: the candidate that was approved goes into the canary lane, and is checked there before any traffic."""

from datetime import UTC, datetime

from visionloop.errors import StageError
from visionloop.project import Project
from visionloop.records import Candidate, Release, RolloutState
from visionloop.serving.golden import read_golden
from visionloop.stages.release.checks import check_endurance, check_speed
from visionloop.stages.release.costs import measure_cost
from visionloop.stages.release.ending import end, finished
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loaded import find_loaded
from visionloop.stages.release.loading import load
from visionloop.stages.release.rollout import STATE, Rollout, open_rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores import Stores
from visionloop.stores.objects import get_artifact
from visionloop.stores.packaged import GOLDEN
from visionloop.stores.routes import Weights
from visionloop.stores.triton import ModelRefused


def preflight(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Bring the candidate into the canary lane, without any traffic; a Release record says why not."""
    rollout = open_rollout(project, inputs, stores)
    done = finished(rollout)
    if done:
        return done
    rollout.check_right()
    refusal = _refusal(rollout)
    if refusal:
        return rollout.record("rejected", refusal)
    state = _claim(rollout)
    if state.phase != "preflight" and stores.canary.served(project.name) == rollout.candidate.version:
        return state
    if stores.routes.current(project.name) not in (None, Weights(100, 0)):
        rollout.route(canary=0)  # whatever has its weight now, this candidate is not checked yet
    vitals = Vitals(rollout)
    vitals.begin()
    try:
        load(stores.canary, project, rollout.candidate, stores, allowed=rollout.mine)
        vitals.look()
        _measure(rollout, vitals)
        cost = state.cost or measure_cost(rollout)
    except ModelRefused as error:
        rollout.advance(memory=vitals.readings)
        return end(rollout, "rejected", str(error))
    shadows = rollout.serving() and project.release.shadow_images
    begins = "shadow" if shadows else "canary"
    phase = begins if state.phase == "preflight" else state.phase
    return rollout.advance(phase=phase, cost=cost, memory=vitals.readings)


def _refusal(rollout: Rollout) -> str | None:
    """Why this candidate is not to be tried at all."""
    if rollout.approval.decision == "rejected":
        return f"{rollout.approval.by} rejected it: {rollout.approval.reason}"
    serving = rollout.serving()
    if serving is None:
        return None
    if serving.version > rollout.candidate.version:
        return f"version {serving.version} serves already, which is newer than {rollout.candidate.version}"
    theirs = rollout.stores.ledger.get(Candidate, serving.candidate).image_shape
    if theirs != rollout.candidate.image_shape:
        taken, served = ("x".join(map(str, shape)) for shape in (rollout.candidate.image_shape, theirs))
        return (
            f"it takes images of {taken}, version {serving.version}, which serves, of {served}: clients' requests fit "
            "one of them only, so release it as another project"
        )
    return None


def _claim(rollout: Rollout) -> RolloutState:
    """Become the release in progress. An older one that nobody finished is ended; a newer one is left alone."""
    stores, name = rollout.stores, rollout.project.name
    state = rollout.state()
    if rollout.is_mine(state):
        return state
    if state.candidate and state.approval:
        _take_over(rollout, Inputs(candidate=state.candidate, approval=state.approval))
    _check_stable(rollout)

    def change(current: RolloutState | None) -> RolloutState:
        if current and current.candidate and not rollout.is_mine(current):
            raise StageError(f"another release of {name} began at this moment: {current.candidate}")
        if current and current.way_back:
            raise StageError(
                f"{current.way_back.by} is rolling {name} back to version {current.way_back.to_version}, or was cut "
                f"off: `visionloop doctor {name} --repair` finishes it"
            )
        return RolloutState(
            candidate=rollout.inputs.candidate,
            approval=rollout.inputs.approval,
            phase="preflight",
            updated_at=datetime.now(UTC),
        )

    return stores.state.update(RolloutState, name, STATE, change)


def _take_over(rollout: Rollout, other: Inputs) -> None:
    abandoned = open_rollout(rollout.project, other, rollout.stores)
    if abandoned.candidate.version > rollout.candidate.version:
        raise StageError(f"version {abandoned.candidate.version}, which is newer, is being released")
    if not finished(abandoned):
        end(abandoned, "rolled_back", f"version {rollout.candidate.version} came before it was through")


def _check_stable(rollout: Rollout) -> None:
    """A canary is compared with what was released, so that must be there."""
    serving = rollout.serving()
    found = rollout.stores.stable.served(rollout.project.name)
    if serving and found != serving.version:
        raise StageError(
            f"the stable lane serves version {found} of {rollout.project.name}, released is {serving.version}: "
            f"`visionloop rollback {rollout.project.name} --to {serving.version}` loads it again"
        )


def _measure(rollout: Rollout, vitals: Vitals) -> None:
    """Its speed beside the version that serves, and what it needs under the largest requests."""
    project, stores, serving = rollout.project, rollout.stores, rollout.serving()
    golden = read_golden(get_artifact(stores.objects, rollout.candidate, GOLDEN))
    candidate = find_loaded(stores.canary, project, rollout.candidate, stores)
    if serving:
        champion = stores.ledger.get(Candidate, serving.candidate)
        check_speed(candidate, find_loaded(stores.stable, project, champion, stores), golden, project.release)
    check_endurance(candidate, golden, vitals)
