"""How a release ends: whoever comes first writes it down, and then whoever is there brings it about.

From the moment that the end stands in the project's `rollout` document the release goes no further: nobody gives its
canary any weight, and nobody else decides otherwise. What a killed process left undone the next one does.
"""

import logging
from datetime import UTC, datetime

from visionloop.project import Project
from visionloop.records import Candidate, Ending, Release, RolloutState
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loading import load
from visionloop.stages.release.rollout import STATE, Outcome, Rollout, open_rollout
from visionloop.stores import Stores

log = logging.getLogger(__name__)


def end(rollout: Rollout, outcome: Outcome, reason: str) -> Release:
    """End the release in progress; its record says how, which is otherwise where somebody else was first.

    Raises Conflict when another release is in progress by now and this one has no record.
    """

    def change(current: RolloutState | None) -> RolloutState:
        if current is None or not rollout.is_mine(current):
            return current or RolloutState()
        if current.ending:
            return current
        ending = Ending(outcome=outcome, reason=reason)
        return current.model_copy(update={"ending": ending, "updated_at": datetime.now(UTC)})

    rollout.stores.state.update(RolloutState, rollout.project.name, STATE, change)
    done = finished(rollout)
    if done is None:
        raise rollout.taken_over()
    return done


def finished(rollout: Rollout) -> Release | None:
    """The record of a release that came to its end; what is left to be done for it is done."""
    state = rollout.state()
    release = rollout.recorded()
    if not rollout.is_mine(state):
        return release
    if release is None and state.ending:
        release = _bring_about(rollout, state, state.ending)
    if release:
        rollout.tidy()
    return release


def call_off(project: Project, inputs: Inputs, stores: Stores) -> Release | RolloutState:
    """End a release that nobody looks after any more: one of its tasks failed. One that is not in progress stays so."""
    rollout = open_rollout(project, inputs, stores)
    if rollout.is_mine(rollout.state()):
        return end(rollout, "rolled_back", "one of its tasks failed, and nobody looked after it any more")
    return rollout.recorded() or rollout.state()


def put_back(project: Project, serving: Release | None, stores: Stores) -> None:
    """Give the stable lane and the registry's alias the version that was released last, or nothing."""
    if serving is None:
        stores.stable.entry(project.name).remove()
        stores.stable.unload(project.name)
    else:
        load(stores.stable, project, stores.ledger.get(Candidate, serving.candidate), stores)
    stores.registry.set_champion(project.name, serving.version if serving else None)


def _bring_about(rollout: Rollout, state: RolloutState, ending: Ending) -> Release:
    """Weights, lanes and alias, then the record. The canary's weight goes first, or last where it is all there is."""
    project, stores, version = rollout.project, rollout.stores, rollout.candidate.version
    if ending.outcome == "promoted":
        if stores.stable.served(project.name) != version:  # who lost the race for this end may have put another back
            load(stores.stable, project, rollout.candidate, stores, allowed=rollout.still)
        stores.routes.set(project, stable=100, canary=0)
        stores.registry.set_champion(project.name, version)
    else:
        if stores.routes.current(project.name):
            stores.routes.set(project, stable=100, canary=0)
        if state.phase == "promoting":
            put_back(project, rollout.serving(), stores)
    release = rollout.record(ending.outcome, ending.reason)
    log.info("version %d of %s is %s: %s", version, project.name, release.outcome, release.reason)
    return release
