"""Promotion: the stable lane loads the candidate while the canary still carries, then takes all the weight."""

import logging
from datetime import UTC, datetime

from visionloop.project import Project
from visionloop.records import Release, RetrainState, RolloutState, TrainingRun
from visionloop.serving.rollout import describe
from visionloop.stages.release.ending import end, finished, put_back
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loading import load
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stores import Stores
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

RETRAIN = "retrain"


def promote(project: Project, inputs: Inputs, stores: Stores) -> Release:
    """Make the candidate the champion; the registry's alias moves last. A stable lane that refuses it keeps its own.

    Raises Conflict when it was called off, or another release took over.
    """
    rollout = open_rollout(project, inputs, stores)
    release = finished(rollout)
    if release is None:
        state = rollout.require("promoting")
        try:
            load(stores.stable, project, rollout.candidate, stores, allowed=rollout.mine)
        except ModelRefused as error:
            return end(rollout, "rolled_back", str(error))
        release = end(rollout, "promoted", _reason(state))
        serving = rollout.serving()
        if release.outcome == "promoted" and serving and serving.version != release.version:
            put_back(project, serving, stores)  # rolled back before all was done: that stands
    _tell(rollout, release)
    return release


def _reason(state: RolloutState) -> str:
    evidence = f"canary steps passed: {len(state.steps)}; all together: {describe(state.steps)}"
    order = state.orders[-1] if state.orders else None
    return (
        f"promoted early by {order.by}: {order.reason}; {evidence}" if order and order.verb == "promote" else evidence
    )


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
