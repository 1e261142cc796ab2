"""One release in progress: what it is about, how far it came, and how it ends."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from visionloop.errors import Conflict, IntegrityError, StageError, StoreError
from visionloop.monitoring.champion import serving_release
from visionloop.project import Project
from visionloop.records import Approval, Candidate, Release, RolloutState, record_id
from visionloop.stages.release.inputs import Inputs
from visionloop.stores import Stores
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

STATE = "rollout"
Outcome = Literal["promoted", "rolled_back", "rejected"]


@dataclass(frozen=True)
class Rollout:
    """A candidate, the decision about it, and the stores in which it goes on."""

    project: Project
    inputs: Inputs
    stores: Stores
    candidate: Candidate
    approval: Approval

    @property
    def id(self) -> str:
        """Of the Release record: one per candidate and decision."""
        made_from = {"candidate": self.inputs.candidate, "approval": self.inputs.approval}
        return record_id("release", self.project.name, **made_from)

    def serving(self) -> Release | None:
        """What serves now, None before the first release."""
        return last_release(self.project, self.stores)

    def finished(self) -> Release | None:
        """The record of a release that came to its end; what a killed process left to tidy up is tidied up."""
        release = self.stores.ledger.find(Release, self.project.name, self.id)
        if release and self.is_mine(self.state()):
            self.tidy()
        return release

    def state(self) -> RolloutState:
        """How far the project's release in progress came."""
        return self.stores.state.read(RolloutState, self.project.name, STATE) or RolloutState()

    def is_mine(self, state: RolloutState) -> bool:
        """Is it this release that is in progress?"""
        return state.candidate == self.inputs.candidate and state.approval == self.inputs.approval

    def advance(self, **changes: Any) -> RolloutState:
        """Write down a step. Raises Conflict when another release or a rollback took over meanwhile."""

        def change(current: RolloutState | None) -> RolloutState:
            if current is None or not self.is_mine(current):
                raise Conflict(f"the release of version {self.candidate.version} was taken over by another process")
            if not changes:
                return current
            return current.model_copy(update={**changes, "updated_at": datetime.now(UTC)})

        return self.stores.state.update(RolloutState, self.project.name, STATE, change)

    def require(self, *phases: str) -> RolloutState:
        """The state, when this release is in one of these phases. Raises StageError that says what to run."""
        state = self.state()
        if not self.is_mine(state) or state.phase not in phases:
            found = f"{state.phase} of {state.candidate}" if state.candidate else "nothing in progress"
            raise StageError(
                f"version {self.candidate.version} of {self.project.name}: expected {' or '.join(phases)}, "
                f"found {found}: run preflight, shadow, canary and promote in this order"
            )
        return state

    def mine(self) -> RolloutState:
        """The state as it is now. Raises Conflict when another release or a rollback took over meanwhile."""
        return self.advance()

    def end(self, outcome: Outcome, reason: str) -> Release:
        """Take the weight away, record the end, empty the canary lane. The stable lane is not touched."""
        if self.stores.routes.current(self.project.name):
            self.stores.routes.set(self.project, stable=100, canary=0)
        release = self.record(outcome, reason)
        log.info("version %d of %s is %s: %s", release.version, self.project.name, outcome, reason)
        if self.is_mine(self.state()):
            self.tidy()
        return release

    def record(self, outcome: Outcome, reason: str) -> Release:
        """Put the Release record."""
        serving, state = self.serving(), self.state()
        state = state if self.is_mine(state) else RolloutState()
        uris = {"candidate": self.inputs.candidate, "approval": self.inputs.approval}
        return self.stores.ledger.put(
            Release(
                id=self.id,
                project=self.project.name,
                inputs=uris,
                input_digests=self.stores.ledger.digests(uris),
                config_digest=self.project.config_digest("release", "serving"),
                candidate=self.inputs.candidate,
                approval=self.inputs.approval,
                decided_by=self.approval.by,
                decided_at=self.approval.created_at,
                decision_reason=self.approval.reason,
                version=self.candidate.version,
                model_sha256=self.candidate.model_sha256,
                previous_version=serving.version if serving else None,
                cost=state.cost,
                shadow=state.shadow,
                steps=state.steps,
                memory=state.memory,
                orders=state.orders,
                outcome=outcome,
                reason=reason,
            )
        )

    def tidy(self) -> None:
        """Empty the canary lane and close the state."""
        empty_canary(self.project, self.stores)
        self.advance(**RolloutState().model_dump(exclude={"updated_at"}))


def open_rollout(project: Project, inputs: Inputs, stores: Stores) -> Rollout:
    """Read candidate and approval. Raises IntegrityError when the approval is not about this very model."""
    candidate = stores.ledger.get(Candidate, inputs.candidate)
    approval = stores.ledger.get(Approval, inputs.approval)
    if candidate.project != project.name or candidate.model_name != project.name:
        raise IntegrityError(f"candidate {inputs.candidate} is of {candidate.project}, not of {project.name}")
    if approval.candidate != inputs.candidate or approval.model_sha256 != candidate.model_sha256:
        raise IntegrityError(
            f"approval {approval.id} is about {approval.candidate} with the model {approval.model_sha256}, "
            f"expected {inputs.candidate} with {candidate.model_sha256}"
        )
    if approval.decision == "approved" and project.release.approval == "required":
        _check_person(project, approval)
    return Rollout(project, inputs, stores, candidate, approval)


def running(project: Project, stores: Stores) -> Rollout | None:
    """The release in progress, whether or not a process is at work on it."""
    state = stores.state.read(RolloutState, project.name, STATE)
    if not state or not state.candidate or not state.approval:
        return None
    return open_rollout(project, Inputs(candidate=state.candidate, approval=state.approval), stores)


def last_release(project: Project, stores: Stores) -> Release | None:
    """What serves now, None before the first release."""
    return serving_release(stores.ledger.all(Release, project.name))


def _check_person(project: Project, approval: Approval) -> None:
    """Whoever can write to the store still has to be an approver. One who was taken off the list since stops it too."""
    if approval.mode == "automatic":
        raise IntegrityError(f"approval {approval.id} is automatic, but {project.name} asks for a person's")
    if approval.by not in project.release.approvers:
        raise IntegrityError(
            f"approval {approval.id} is by {approval.by}, who is none of the approvers of {project.name}: "
            f"{', '.join(project.release.approvers)}"
        )


def empty_canary(project: Project, stores: Stores) -> None:
    """Nothing stays in the canary lane; one that is down comes back empty, since its folder is."""
    stores.canary.entry(project.name).remove()
    try:
        stores.canary.unload(project.name)
    except (StoreError, ModelRefused) as error:
        log.warning("the canary lane was not unloaded: %s", error)
