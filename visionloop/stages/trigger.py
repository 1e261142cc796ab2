"""Trigger: decide whether the loop turns, and open the retrain request by compare-and-swap. Light: an Airflow worker
runs it.

The state document is written first and names the decision's URI, which is known beforehand; the record comes last.
Killed in between and run again, the stage finds its own request open and writes the same decision.
"""

import logging
from datetime import UTC, datetime

from visionloop.monitoring.champion import serving_release
from visionloop.monitoring.decision import Action, Evidence, decide
from visionloop.project import Project
from visionloop.records import DriftReport, Frozen, Release, RetrainState, TriggerDecision, digest, record_id
from visionloop.stores import Stores

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """What the decision is about."""

    drift_report: str
    """URI of the `DriftReport`."""


def run(project: Project, inputs: Inputs, stores: Stores) -> TriggerDecision:
    """Decide once per drift report; at most one retrain request is open, however many monitors run."""
    policy = project.config_digest("monitoring")
    decision_id = record_id("trigger_decision", project.name, drift_report=inputs.drift_report, policy=policy)
    found = stores.ledger.find(TriggerDecision, project.name, decision_id)
    if found:
        return found
    report = stores.ledger.get(DriftReport, inputs.drift_report)
    action, reasons = _settle(project, stores, report, decision_id)
    log.info("trigger %s for %s: %s, %s", decision_id, project.name, action, reasons[0])
    return stores.ledger.put(
        TriggerDecision(
            id=decision_id,
            project=project.name,
            inputs={"drift_report": inputs.drift_report},
            input_digests={"drift_report": digest(report)},
            config_digest=policy,
            drift_report=report.id,
            candidate=report.candidate,
            action=action,
            reasons=reasons,
        )
    )


def _settle(project: Project, stores: Stores, report: DriftReport, decision_id: str) -> tuple[Action, list[str]]:
    """Decide on the state as it is at the moment of the swap, again after each lost swap."""
    mine = _uri(project, stores, decision_id)
    release = serving_release(stores.ledger.all(Release, project.name))
    now = datetime.now(UTC)
    settled: tuple[Action, list[str]] = "none", []

    def change(state: RetrainState | None) -> RetrainState:
        nonlocal settled
        state = state or RetrainState()
        owned = state.request == mine
        evidence = Evidence(
            report=report,
            champion=release.candidate if release else None,
            open_request=None if owned else state.request,
            last_release_at=release.created_at if release else None,
            last_request_at=None if owned else state.opened_at,
            now=now,
        )
        settled = decide(evidence, project.monitoring)
        if owned or settled[0] == "none":
            return state
        return RetrainState(request=mine, opened_at=now)

    after = stores.state.update(RetrainState, project.name, "retrain", change)
    return ("retrain" if after.request == mine else "none"), settled[1]


def _uri(project: Project, stores: Stores, decision_id: str) -> str:
    from visionloop import layout

    return stores.objects.uri(layout.record(project.name, TriggerDecision.kind, decision_id))
