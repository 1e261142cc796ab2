"""Rollback: an earlier released version serves again, or the canary in progress is called off."""

import logging
from datetime import UTC, datetime

from visionloop.errors import StageError
from visionloop.monitoring.champion import serving_release
from visionloop.project import Project
from visionloop.records import Candidate, Release, RolloutState, WayBack, record_id
from visionloop.stages.release.ending import end, put_back
from visionloop.stages.release.inputs import RollbackInputs
from visionloop.stages.release.loading import load
from visionloop.stages.release.rollout import STATE, running
from visionloop.stores import Stores
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)


def foresee(project: Project, inputs: RollbackInputs, stores: Stores) -> str:
    """What `rollback` would do now, in words; raises what it would raise. Nothing is changed."""
    found = running(project, stores)
    ending = found.state().ending if found else None
    unfinished = found if found and not ending and not found.recorded() else None
    releases = _promoted(project, stores)
    serving = serving_release(releases)
    if found and ending and ending.outcome == "promoted" and not found.recorded() and inputs.to_version is None:
        before = f"version {serving.version} serves" if serving else "nothing is there to serve"
        return f"the release of version {found.candidate.version}, which is through, is finished; {before} instead"
    stays = f"version {serving.version} goes on serving" if serving else "nothing serves then"
    called_off = f"the release of version {unfinished.candidate.version} is called off" if unfinished else ""
    if unfinished and inputs.to_version is None:
        return f"{called_off}, {stays}"
    target = _target(project, inputs, serving, releases)
    assert serving is not None
    back = f"version {target.version} serves instead of {serving.version}"
    if target.version == serving.version:
        back = f"version {target.version} is loaded again"
    return ", ".join(filter(None, (called_off, back)))


def rollback(project: Project, inputs: RollbackInputs, stores: Stores) -> Release:
    """Load the version in the stable lane, verify it, then move weights and alias. If it cannot load, nothing changes.

    What is wanted is written down first, so that the doctor can finish what was cut off. While a release is in
    progress and no version is named, it is called off and its record returned: what serves is already the version
    before it. Raises StageError when there is nothing to go back to.
    """
    called_off = _call_off(project, inputs, stores)
    if called_off and called_off.outcome != "promoted" and inputs.to_version is None:
        return called_off
    releases = _promoted(project, stores)
    serving = serving_release(releases)
    target = _target(project, inputs, serving, releases)
    assert serving is not None  # else there was no target
    candidate = stores.ledger.get(Candidate, target.candidate)
    _begin(project, WayBack(to_version=target.version, by=inputs.by, reason=inputs.reason), stores)
    try:
        _load(project, candidate, serving, stores)
    except StageError:
        _done(project, stores)
        raise
    stores.routes.set(project, stable=100, canary=0)
    stores.registry.set_champion(project.name, candidate.version)
    same = target.version == serving.version
    release = serving if same else stores.ledger.put(_record(project, inputs, serving, target))
    _done(project, stores)
    return release


def abort(project: Project, inputs: RollbackInputs, stores: Stores) -> Release:
    """Call the release in progress off; what served before goes on. Raises StageError when none is in progress."""
    found = _call_off(project, inputs, stores)
    if found is None:
        raise StageError(f"no release of {project.name} is in progress")
    if found.outcome == "promoted":
        raise StageError(
            f"version {found.version} of {project.name} came through at this moment: "
            f"`visionloop rollback {project.name}` takes it back"
        )
    return found


def _call_off(project: Project, inputs: RollbackInputs, stores: Stores) -> Release | None:
    """The release that was in progress, ended; None when there was none."""
    rollout = running(project, stores)
    return end(rollout, "rolled_back", f"called off by {inputs.by}: {inputs.reason}") if rollout else None


def _begin(project: Project, wanted: WayBack, stores: Stores) -> None:
    def change(current: RolloutState | None) -> RolloutState:
        if current and current.candidate:
            raise StageError(f"a release of {project.name} began at this moment: {current.candidate}: try again")
        return (current or RolloutState()).model_copy(update={"way_back": wanted, "updated_at": datetime.now(UTC)})

    stores.state.update(RolloutState, project.name, STATE, change)


def _done(project: Project, stores: Stores) -> None:
    def change(current: RolloutState | None) -> RolloutState:
        return (current or RolloutState()).model_copy(update={"way_back": None})

    stores.state.update(RolloutState, project.name, STATE, change)


def _promoted(project: Project, stores: Stores) -> list[Release]:
    return [release for release in stores.ledger.all(Release, project.name) if release.outcome == "promoted"]


def _target(project: Project, inputs: RollbackInputs, serving: Release | None, releases: list[Release]) -> Release:
    """The first release of the version: a later rollback to it says nothing about what came before."""
    if serving is None:
        raise StageError(f"{project.name} was never released, so there is nothing to go back to")
    first: dict[int, Release] = {}
    for release in releases:
        first.setdefault(release.version, release)
    version = inputs.to_version if inputs.to_version is not None else first[serving.version].previous_version
    if version is None or version not in first:
        known = ", ".join(map(str, sorted(first)))
        wanted = f"version {version}" if version is not None else "a version before the first one"
        raise StageError(f"{project.name} cannot go back to {wanted}: released were {known}")
    return first[version]


def _load(project: Project, candidate: Candidate, serving: Release, stores: Stores) -> None:
    try:
        load(stores.stable, project, candidate, stores)
    except ModelRefused as error:
        if candidate.version != serving.version:
            put_back(project, serving, stores)
        raise StageError(f"version {serving.version} of {project.name} goes on serving: {error}") from error


def _record(project: Project, inputs: RollbackInputs, serving: Release, target: Release) -> Release:
    reason = f"version {target.version} serves again instead of {serving.version}, by {inputs.by}: {inputs.reason}"
    log.info("%s: %s", project.name, reason)
    return Release(
        id=record_id("release", project.name, instead_of=serving.id, version=target.version),
        project=project.name,
        inputs=target.inputs,
        input_digests=target.input_digests,
        config_digest=project.config_digest("release", "serving"),
        candidate=target.candidate,
        approval=target.approval,
        decided_by=target.decided_by,
        decided_at=target.decided_at,
        decision_reason=target.decision_reason,
        version=target.version,
        model_sha256=target.model_sha256,
        previous_version=serving.version,
        steps=[],
        outcome="promoted",
        reason=reason,
    )
