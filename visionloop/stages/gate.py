"""Gate: write down whether an evaluated model may be packaged. A rejection is a result, not a fault. Light."""

import logging

from visionloop.evaluation.gate import decide
from visionloop.project import Project
from visionloop.records import Evaluation, Frozen, GateDecision, record_id
from visionloop.stores import Stores

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """What to decide about."""

    evaluation: str
    """URI of the evaluation."""


def run(project: Project, inputs: Inputs, stores: Stores) -> GateDecision:
    """Decide once for the same evaluation and policy."""
    config = project.config_digest("gate")
    decision_id = record_id("gate_decision", project.name, evaluation=inputs.evaluation, config=config)
    known = stores.ledger.find(GateDecision, project.name, decision_id)
    if known:
        return known
    evaluation = stores.ledger.get(Evaluation, inputs.evaluation)
    outcome, reasons = decide(evaluation, project.gate)
    log.info("gate %s for evaluation %s: %s", outcome, evaluation.id, "; ".join(reasons))
    return stores.ledger.put(
        GateDecision(
            id=decision_id,
            project=project.name,
            inputs={"evaluation": inputs.evaluation},
            input_digests=stores.ledger.digests({"evaluation": inputs.evaluation}),
            config_digest=config,
            seed=evaluation.seed,
            evaluation=inputs.evaluation,
            outcome=outcome,
            reasons=reasons,
        )
    )
