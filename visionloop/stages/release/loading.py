"""Preflight: the files that were approved go into the canary lane, and are checked there before any traffic."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from visionloop.errors import StageError
from visionloop.project import Project
from visionloop.records import Candidate, Release, RolloutState
from visionloop.serving.golden import read_golden
from visionloop.stages.release.checks import check_endurance, check_sound, check_speed, smoke
from visionloop.stages.release.costs import measure_cost
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loaded import find_loaded, loaded
from visionloop.stages.release.rollout import STATE, Rollout, open_rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores import Stores, packaged
from visionloop.stores.objects import get_artifact
from visionloop.stores.packaged import CONFIG, MODEL, check_signed, read_packaged
from visionloop.stores.triton import Lane, ModelRefused

log = logging.getLogger(__name__)

GOLDEN = packaged.GOLDEN


def preflight(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Bring the candidate into the canary lane, without any traffic; a Release record says why not."""
    rollout = open_rollout(project, inputs, stores)
    done = rollout.finished()
    if done:
        return done
    refusal = _refusal(rollout)
    if refusal:
        return rollout.record("rejected", refusal)
    state = _claim(rollout)
    if state.phase != "preflight" and stores.canary.served(project.name) == rollout.candidate.version:
        return state
    vitals = Vitals(rollout)
    vitals.begin()
    try:
        load(stores.canary, project, rollout.candidate, stores)
        vitals.look()
        _check_speed(rollout)
        _check_endurance(rollout, vitals)
        cost = state.cost or measure_cost(rollout)
    except ModelRefused as error:
        rollout.advance(memory=vitals.readings)
        return rollout.end("rejected", str(error))
    shadows = rollout.serving() and project.release.shadow_images
    begins = "shadow" if shadows else "canary"
    phase = begins if state.phase == "preflight" else state.phase
    return rollout.advance(phase=phase, cost=cost, memory=vitals.readings)


def load(lane: Lane, project: Project, candidate: Candidate, stores: Stores) -> None:
    """Write the entry, load it, and hold its answers against the offline ones.

    Raises ModelRefused when Triton does not load it or answers otherwise, the entry on disk is then still the new one;
    IntegrityError for a file that is not the candidate's, or that nobody vouches for and lies in the lane's entry.
    """
    files = read_packaged(candidate, stores, GOLDEN)
    config = files[CONFIG].decode()
    entry, one = lane.entry(project.name), loaded(lane, project, candidate, config)
    entry.write(
        version=candidate.version,
        config=config,
        model=files[MODEL],
        sha256=candidate.model_sha256,
        signature=candidate.signature,
    )
    entry.check()
    lane.load(project.name)
    served = lane.served(project.name)
    if served != candidate.version:
        raise ModelRefused(f"the {lane.name} lane serves version {served}, expected {candidate.version}")
    smoke(one, read_golden(files[GOLDEN]), project.release)
    check_sound(one)
    entry.prune()


def put_back(project: Project, serving: Release | None, stores: Stores) -> None:
    """Give the stable lane and the registry's alias the version that was released last, or nothing."""
    if serving is None:
        stores.stable.entry(project.name).remove()
        stores.stable.unload(project.name)
    else:
        load(stores.stable, project, stores.ledger.get(Candidate, serving.candidate), stores)
    stores.registry.set_champion(project.name, serving.version if serving else None)


def call_off(rollout: Rollout, reason: str) -> Release:
    """End a release that is not through: its canary goes, and a stable lane that was given it already goes back."""
    if rollout.state().phase == "promoting":
        put_back(rollout.project, rollout.serving(), rollout.stores)
    return rollout.end("rolled_back", reason)


def check_signature(project: Project, candidate: Candidate, files: Mapping[str, bytes], stores: Stores) -> None:
    """Raises IntegrityError when model, configuration and golden samples are not what this installation signed."""
    check_signed(candidate, files, stores)


def _check_speed(rollout: Rollout) -> None:
    serving, stores = rollout.serving(), rollout.stores
    if serving:
        golden = read_golden(fetch(rollout.candidate, GOLDEN, stores))
        candidate = find_loaded(stores.canary, rollout.project, rollout.candidate, stores)
        champion = stores.ledger.get(Candidate, serving.candidate)
        check_speed(
            candidate, find_loaded(stores.stable, rollout.project, champion, stores), golden, rollout.project.release
        )


def _check_endurance(rollout: Rollout, vitals: Vitals) -> None:
    golden = read_golden(fetch(rollout.candidate, GOLDEN, rollout.stores))
    one = find_loaded(rollout.stores.canary, rollout.project, rollout.candidate, rollout.stores)
    check_endurance(one, golden, vitals)


def fetch(candidate: Candidate, name: str, stores: Stores) -> bytes:
    """An artifact's bytes. Raises IntegrityError when they are not those that the candidate vouches for."""
    return get_artifact(stores.objects, candidate, name)


def _refusal(rollout: Rollout) -> str | None:
    """Why this candidate is not to be tried at all."""
    if rollout.approval.decision == "rejected":
        return f"{rollout.approval.by} rejected it: {rollout.approval.reason}"
    serving = rollout.serving()
    if serving and serving.version > rollout.candidate.version:
        return f"version {serving.version} serves already, which is newer than {rollout.candidate.version}"
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
    if not abandoned.finished():
        call_off(abandoned, f"version {rollout.candidate.version} came before it was through")


def _check_stable(rollout: Rollout) -> None:
    """A canary is compared with what was released, so that must be there."""
    serving = rollout.serving()
    found = rollout.stores.stable.served(rollout.project.name)
    if serving and found != serving.version:
        raise StageError(
            f"the stable lane serves version {found} of {rollout.project.name}, released is {serving.version}: "
            f"`visionloop rollback {rollout.project.name} --to {serving.version}` loads it again"
        )
