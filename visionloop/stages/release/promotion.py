"""Promotion: the stable lane loads the candidate while the canary still carries, then takes all the weight."""

import logging
from datetime import UTC, datetime

from visionloop.monitoring.champion import id_of
from visionloop.project import Project
from visionloop.records import Candidate, Release, RetrainState, TrainingRun
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loading import load
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
        _close_request(rollout, done)
        return done
    state = rollout.require("promoting")
    try:
        load(stores.stable, project, rollout.candidate, stores)
    except ModelRefused as error:
        put_back(project, rollout.serving(), stores)
        return rollout.end("rolled_back", str(error))
    rollout.advance(phase="promoting")  # raises when a rollback took over while Triton loaded
    stores.routes.set(project, stable=100, canary=0)
    stores.registry.set_champion(project.name, rollout.candidate.version)
    release = rollout.record("promoted", f"passed {len(state.steps)} canary steps, {state.steps[-1].reason}")
    log.info("version %d of %s serves", release.version, project.name)
    stores.registry.tag(project.name, release.version, {"visionloop.release": stores.ledger.uri(release)})
    _close_request(rollout, release)
    rollout.tidy()
    return release


def put_back(project: Project, serving: Release | None, stores: Stores) -> None:
    """Give the stable lane's folder and process the version that was released last, or nothing."""
    if serving is None:
        stores.stable.entry(project.name).remove()
        stores.stable.unload(project.name)
        return
    load(stores.stable, project, stores.ledger.get(Candidate, serving.candidate), stores)


def _close_request(rollout: Rollout, release: Release) -> None:
    """The open retrain request is answered when this candidate was trained for it."""
    if release.outcome != "promoted":
        return
    stores, name = rollout.stores, rollout.project.name
    run = stores.ledger.find(TrainingRun, name, id_of(rollout.candidate.training_run))
    wanted = run.retrain_request if run else None

    def change(state: RetrainState | None) -> RetrainState:
        state = state or RetrainState()
        if not wanted or not state.request or id_of(state.request) != id_of(wanted):
            return state
        log.info("retrain request %s is answered by %s", state.request, release.id)
        return RetrainState(
            opened_at=state.opened_at, closed_at=datetime.now(UTC), closed_by=stores.ledger.uri(release)
        )

    if stores.state.read(RetrainState, name, RETRAIN):
        stores.state.update(RetrainState, name, RETRAIN, change)
