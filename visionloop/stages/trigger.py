"""Trigger: decide whether the loop turns, and open the retrain request by compare-and-swap. Light: an Airflow worker
runs it.

The state document is written first and names the decision's URI, which is known beforehand; the record comes last.
Killed in between and run again, the stage finds its own request open and writes the decision that belongs to it.
"""

import logging
from datetime import UTC, datetime

from visionloop import layout
from visionloop.monitoring.champion import serving_release
from visionloop.monitoring.decision import Action, Evidence, decide
from visionloop.project import Project
from visionloop.records import DriftReport, Frozen, Release, RetrainState, TriggerDecision, record_id
from visionloop.stores import Stores

log = logging.getLogger(__name__)
STATE = "retrain"


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
    mine = stores.objects.uri(layout.record(project.name, TriggerDecision.kind, decision_id))
    action, reasons = _settle(project, stores, report, mine)
    log.info("trigger %s for %s: %s, %s", decision_id, project.name, action, reasons[0])
    return stores.ledger.put(
        TriggerDecision(
            id=decision_id,
            project=project.name,
            inputs={"drift_report": inputs.drift_report},
            input_digests=stores.ledger.digests({"drift_report": inputs.drift_report}),
            config_digest=policy,
            drift_report=inputs.drift_report,
            candidate=report.candidate,
            action=action,
            reasons=reasons,
        )
    )


def _settle(project: Project, stores: Stores, report: DriftReport, mine: str) -> tuple[Action, list[str]]:
    """Decide on the state as it is at the moment of the swap, again after each lost swap."""
    release = serving_release(stores.ledger.all(Release, project.name))
    decided: tuple[Action, list[str]] = ("none", [])

    def change(state: RetrainState | None) -> RetrainState:
        nonlocal decided
        state = state or RetrainState()
        now = datetime.now(UTC)
        evidence = Evidence(
            report=report,
            champion=release.candidate if release else None,
            open_request=state.request,
            last_release_at=release.created_at if release else None,
            last_request_at=state.opened_at,
            now=now,
        )
        if state.request == mine:  # an earlier try of this very decision was killed after it had opened the request
            opened = state.opened_at or now
            evidence = evidence.model_copy(update={"open_request": None, "last_request_at": None, "now": opened})
            decided = "retrain", decide(evidence, project.monitoring)[1]
            return state
        decided = decide(evidence, project.monitoring)
        return RetrainState(request=mine, opened_at=now) if decided[0] == "retrain" else state

    stores.state.update(RetrainState, project.name, STATE, change)
    return decided
