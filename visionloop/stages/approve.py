"""Writes down who let a candidate go, or did not, and why. The first decision stands until its release has ended.

Light: it runs in the process that asked (Airflow's worker), not in a Ray job.
"""

import logging
from typing import Literal

from visionloop.errors import IntegrityError
from visionloop.project import Project
from visionloop.records import Approval, Candidate, Frozen, record_id
from visionloop.stores import Stores

log = logging.getLogger(__name__)

MODEL = "model.onnx"


class Inputs(Frozen):
    """A decision."""

    candidate: str
    """URI."""
    decision: Literal["approved", "rejected"]
    by: str
    """User name; `visionloop` for a decision that nobody made."""
    reason: str
    mode: Literal["human", "automatic"] = "human"
    after: str | None = None
    """URI of an earlier decision about the same candidate that came to its end; unset: the first one."""
    model_sha256: str | None = None
    """Digest of the model that was shown to whoever decided; unset: the candidate's."""


def run(project: Project, inputs: Inputs, stores: Stores) -> Approval:
    """Record the decision and tag the registry's version with it; a second decision changes nothing.

    Raises IntegrityError when the decision is about another model than the candidate's, or is nobody's to make.
    """
    candidate = stores.ledger.get(Candidate, inputs.candidate)
    _check(project, inputs, candidate)
    approval = stores.ledger.put(_approval(project, inputs, candidate, stores))
    if (approval.decision, approval.by) != (inputs.decision, inputs.by):
        log.warning("candidate %s was %s by %s before: that stands", candidate.id, approval.decision, approval.by)
    _tag(project, candidate, approval, stores)
    log.info(
        "version %d of %s is %s by %s (%s): %s",
        *(candidate.version, project.name, approval.decision, approval.by, approval.mode, approval.reason),
    )
    return approval


def _approval(project: Project, inputs: Inputs, candidate: Candidate, stores: Stores) -> Approval:
    """The id leaves out who and what was decided, so that there can be one at a time only."""
    again = {"after": inputs.after} if inputs.after else {}
    return Approval(
        id=record_id("approval", project.name, candidate=inputs.candidate, **again),
        project=project.name,
        inputs={"candidate": inputs.candidate},
        input_digests=stores.ledger.digests({"candidate": inputs.candidate}),
        config_digest=project.config_digest("release"),
        candidate=inputs.candidate,
        model_sha256=candidate.model_sha256,
        decision=inputs.decision,
        mode=inputs.mode,
        by=inputs.by,
        reason=inputs.reason,
    )


def _check(project: Project, inputs: Inputs, candidate: Candidate) -> None:
    if candidate.project != project.name:
        raise IntegrityError(f"candidate {inputs.candidate} is of project {candidate.project}, not {project.name}")
    shown = inputs.model_sha256 or candidate.model_sha256
    packaged = candidate.artifacts[MODEL].sha256 if MODEL in candidate.artifacts else "no model"
    if not shown == candidate.model_sha256 == packaged:
        raise IntegrityError(
            f"the decision is about the model {shown}, candidate {candidate.id} holds {candidate.model_sha256} "
            f"and its artifact is {packaged}: all three must be the same"
        )
    if inputs.decision == "approved":
        _check_right(project, inputs)


def _check_right(project: Project, inputs: Inputs) -> None:
    policy = project.release
    if inputs.mode == "automatic" and policy.approval != "automatic":
        raise IntegrityError(f"{project.name} asks for a person's approval, so nobody else may approve")
    if inputs.mode == "human" and policy.approval == "required" and inputs.by not in policy.approvers:
        raise IntegrityError(f"{inputs.by} is none of the approvers of {project.name}: {', '.join(policy.approvers)}")


def _tag(project: Project, candidate: Candidate, approval: Approval, stores: Stores) -> None:
    tags = {
        "visionloop.approval": stores.ledger.uri(approval),
        "visionloop.decision": approval.decision,
        "visionloop.decided_by": approval.by,
        "visionloop.decided_at": approval.created_at.isoformat(),
        "visionloop.decision_mode": approval.mode,
        "visionloop.decision_reason": approval.reason,
    }
    stores.registry.tag(project.name, candidate.version, tags)
