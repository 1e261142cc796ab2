"""Should a model be trained now, on which snapshot, for which request? A pure function of the book of record. Light."""

from typing import Literal

from visionloop.records import Frozen, Snapshot, id_of

Start = Literal["every_snapshot", "when_requested"]


class TrainingPlan(Frozen):
    """Train, or wait, and for what."""

    go: bool
    reason: str
    snapshot: str | None = None
    """URI of the snapshot to train on."""
    retrain_request: str | None = None
    """URI of the open request that the training answers."""


class PlanEvidence(Frozen):
    """What the ledger and the state document know."""

    latest: Snapshot | None
    latest_uri: str | None
    champion_snapshot: Snapshot | None
    """The snapshot that the serving model was trained on; None before the first release."""
    trained_snapshots: frozenset[str] = frozenset()
    """Ids of the snapshots that some training run has used, whatever became of the model."""
    open_request: str | None = None
    """URI of the open retrain request."""


def decide_training(evidence: PlanEvidence, start: Start) -> TrainingPlan:
    """Train on the latest snapshot, once; see `training.start` in the project file for when."""
    latest = evidence.latest
    if latest is None or evidence.latest_uri is None:
        return _wait("there is no snapshot yet: waiting for the first batch")
    if latest.id in evidence.trained_snapshots:
        return _wait(f"snapshot {latest.tag} was trained already: {_waits_for(evidence, latest)}")
    if start == "every_snapshot":
        return _go(evidence, f"snapshot {latest.tag} is new, and every snapshot is trained")
    if evidence.champion_snapshot is None:
        return _go(evidence, f"no model is released yet: training on snapshot {latest.tag}")
    return _when_requested(evidence, latest, evidence.champion_snapshot)


def _when_requested(evidence: PlanEvidence, latest: Snapshot, champion: Snapshot) -> TrainingPlan:
    if evidence.open_request is None:
        return _wait(f"snapshot {latest.tag} has {latest.samples} samples, but nothing asks for a retraining")
    if latest.version <= champion.version or latest.samples <= champion.samples:
        return _wait(_waits_for(evidence, champion))
    added = latest.samples - champion.samples
    return _go(
        evidence,
        f"request {id_of(evidence.open_request)} is open, and snapshot {latest.tag} has {added} samples "
        f"that the champion's snapshot {champion.tag} has not",
    )


def _waits_for(evidence: PlanEvidence, known: Snapshot) -> str:
    samples = f"waiting for labelled samples newer than snapshot {known.tag}"
    return f"request {id_of(evidence.open_request)} is open; {samples}" if evidence.open_request else samples


def _go(evidence: PlanEvidence, reason: str) -> TrainingPlan:
    return TrainingPlan(go=True, reason=reason, snapshot=evidence.latest_uri, retrain_request=evidence.open_request)


def _wait(reason: str) -> TrainingPlan:
    return TrainingPlan(go=False, reason=reason)
