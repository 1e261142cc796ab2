"""Promotion: the stable lane loads the candidate while the canary still carries, then takes all the weight."""

import logging
from datetime import UTC, datetime

from visionloop.errors import Conflict
from visionloop.project import Project
from visionloop.records import Release, RetrainState, RolloutState, TrainingRun
from visionloop.serving.rollout import describe
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loading import load, put_back
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stores import Stores
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

RETRAIN = "retrain"


def promote(project: Project, inputs: Inputs, stores: Stores) -> Release:
    """Make the candidate the champion; the registry's alias moves last. A stable lane that refuses it keeps its own."""
    rollout = open_rollout(project, inputs, stores)
    done = rollout.finished()
    if done:
        _tell(rollout, done)
        return done
    state = rollout.require("promoting")
    try:
        load(stores.stable, project, rollout.candidate, stores)
    except ModelRefused as error:
        put_back(project, rollout.serving(), stores)
        return rollout.end("rolled_back", str(error))
    _still_mine(rollout)
    stores.routes.set(project, stable=100, canary=0)
    stores.registry.set_champion(project.name, rollout.candidate.version)
    release = rollout.record("promoted", _reason(state))
    if release.outcome != "promoted":  # called off at this very moment, which stands
        put_back(project, rollout.serving(), stores)
        return release
    log.info("version %d of %s serves", release.version, project.name)
    _tell(rollout, release)
    rollout.tidy()
    return release


def _reason(state: RolloutState) -> str:
    evidence = f"canary steps passed: {len(state.steps)}; all together: {describe(state.steps)}"
    order = state.orders[-1] if state.orders else None
    return (
        f"promoted early by {order.by}: {order.reason}; {evidence}" if order and order.verb == "promote" else evidence
    )


def _still_mine(rollout: Rollout) -> None:
    """Raises Conflict when a rollback or a newer release took over while Triton loaded; its version serves then."""
    try:
        rollout.advance(phase="promoting")
    except Conflict:
        put_back(rollout.project, rollout.serving(), rollout.stores)
        raise


def _tell(rollout: Rollout, release: Release) -> None:
    """Whoever waits for it: the registry's version names its release, and the retrain request is answered."""
    if release.outcome != "promoted":
        return
    stores = rollout.stores
    stores.registry.tag(release.project, release.version, {"visionloop.release": stores.ledger.uri(release)})
    _close_request(rollout, release)


def _close_request(rollout: Rollout, release: Release) -> None:
    """The open retrain request is answered when this candidate was trained for it."""
    stores, name = rollout.stores, rollout.project.name
    if not stores.state.read(RetrainState, name, RETRAIN):
        return
    wanted = stores.ledger.get(TrainingRun, rollout.candidate.training_run).retrain_request

    def change(state: RetrainState | None) -> RetrainState:
        state = state or RetrainState()
        if not wanted or state.request != wanted:
            return state
        log.info("retrain request %s is answered by %s", state.request, release.id)
        return RetrainState(
            opened_at=state.opened_at, closed_at=datetime.now(UTC), closed_by=stores.ledger.uri(release)
        )

    stores.state.update(RetrainState, name, RETRAIN, change)
