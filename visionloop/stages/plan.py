"""Plan: look whether a model is to be trained now. Reads the ledger and the retrain request, writes nothing. Light."""

import logging

from visionloop.monitoring.champion import serving_release
from visionloop.project import Project
from visionloop.records import Candidate, Frozen, Release, RetrainState, Snapshot, TrainingRun, id_of
from visionloop.stores import Stores
from visionloop.training.plan import PlanEvidence, TrainingPlan, decide_training

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """None: the plan reads the latest state itself, because an asset event may come late or not at all."""


def run(project: Project, inputs: Inputs, stores: Stores) -> TrainingPlan:
    """Decide from what is recorded now."""
    plan = decide_training(_evidence(project, stores), project.training.start)
    log.info("plan for %s: %s, %s", project.name, "train" if plan.go else "wait", plan.reason)
    return plan


def _evidence(project: Project, stores: Stores) -> PlanEvidence:
    latest = stores.ledger.latest(Snapshot, project.name)
    state = stores.state.read(RetrainState, project.name, "retrain")
    return PlanEvidence(
        latest=latest,
        latest_uri=stores.ledger.uri(latest) if latest else None,
        champion_snapshot=_champion_snapshot(project, stores),
        trained_snapshots=frozenset(id_of(run.snapshot) for run in stores.ledger.all(TrainingRun, project.name)),
        open_request=state.request if state else None,
    )


def _champion_snapshot(project: Project, stores: Stores) -> Snapshot | None:
    release = serving_release(stores.ledger.all(Release, project.name))
    candidate = stores.ledger.get(Candidate, release.candidate) if release else None
    return stores.ledger.get(Snapshot, candidate.snapshot) if candidate else None
