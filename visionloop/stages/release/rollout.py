"""One release in progress: what it is about, how far it came, and how it ends."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from visionloop.errors import Conflict, IntegrityError, StageError, StoreError
from visionloop.monitoring.champion import serving_release
from visionloop.project import Project
from visionloop.records import Approval, Candidate, Release, RolloutState, record_id
from visionloop.stages.release.inputs import Inputs
from visionloop.stores import Stores
from visionloop.stores.lane_lock import lane_lock
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

STATE = "rollout"
SEEN_AGAIN = timedelta(seconds=30)
"""So often it is written down that somebody looks after a release."""
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

    @cached_property
    def champion(self) -> int | None:
        """The version that serves beside it: no other can come while this release is in progress."""
        serving = self.serving()
        return serving.version if serving else None

    def recorded(self) -> Release | None:
        """The record of a release that came to its end."""
        return self.stores.ledger.find(Release, self.project.name, self.id)

    def state(self) -> RolloutState:
        """How far the project's release in progress came."""
        return self.stores.state.read(RolloutState, self.project.name, STATE) or RolloutState()

    def is_mine(self, state: RolloutState) -> bool:
        """Is it this release that is in progress?"""
        return state.candidate == self.inputs.candidate and state.approval == self.inputs.approval

    def advance(self, **changes: Any) -> RolloutState:
        """Write down a step. Raises Conflict when another release took over, or somebody ended this one."""

        def change(current: RolloutState | None) -> RolloutState:
            if current is None or not self.is_mine(current):
                raise self.taken_over()
            if current.ending:
                found = f"{current.ending.outcome}: {current.ending.reason}"
                raise Conflict(f"the release of version {self.candidate.version} is being ended as {found}")
            now = datetime.now(UTC)
            if not changes and now - current.updated_at < SEEN_AGAIN:
                return current
            return current.model_copy(update={**changes, "updated_at": now})

        return self.stores.state.update(RolloutState, self.project.name, STATE, change)

    def require(self, *phases: str) -> RolloutState:
        """The state, when this release is in one of these phases. Raises StageError that says what to run."""
        self.check_right()
        state = self.state()
        if not self.is_mine(state) or state.phase not in phases:
            found = f"{state.phase} of {state.candidate}" if state.candidate else "nothing in progress"
            raise StageError(
                f"version {self.candidate.version} of {self.project.name}: expected {' or '.join(phases)}, "
                f"found {found}: run preflight, shadow, canary and promote in this order"
            )
        return state

    def mine(self) -> RolloutState:
        """The state as it is now, which says that somebody looks after it. Raises as `advance`."""
        return self.advance()

    def still(self) -> None:
        """Raises Conflict when it is no longer the release in progress, ended or not."""
        if not self.is_mine(self.state()):
            raise self.taken_over()

    def taken_over(self) -> Conflict:
        """What a process is told that goes on with what is another's by now."""
        return Conflict(f"the release of version {self.candidate.version} was taken over by another process")

    def route(self, *, canary: int, mirrored: bool = False) -> None:
        """Give the canary lane so many percent of the traffic. Raises as `advance`, and then nothing is changed."""
        self.stores.routes.set(self.project, stable=100 - canary, canary=canary, mirrored=mirrored, allowed=self.mine)

    def check_right(self) -> None:
        """May it go on? Raises IntegrityError when no approver let it go, by the project file as it is now."""
        if self.approval.decision == "approved" and self.project.release.approval == "required":
            _check_person(self.project, self.approval)

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
                live=state.live,
                memory=state.memory,
                orders=state.orders,
                outcome=outcome,
                reason=reason,
            )
        )

    def tidy(self) -> None:
        """Empty the canary lane and close the state, if nobody has done so."""
        empty_canary(self.project, self.stores, unless=lambda: not self.is_mine(self.state()))

        def change(current: RolloutState | None) -> RolloutState:
            return current if current and not self.is_mine(current) else RolloutState()

        self.stores.state.update(RolloutState, self.project.name, STATE, change)


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


def empty_canary(project: Project, stores: Stores, *, unless: Callable[[], bool]) -> None:
    """Nothing stays in the canary lane, unless it is another's by now. A lane that is down comes back empty."""
    with lane_lock(stores.settings, "canary", project.name):
        if unless():
            return
        stores.canary.entry(project.name).remove()
        try:
            stores.canary.unload(project.name)
        except (StoreError, ModelRefused) as error:
            log.warning("the canary lane was not unloaded: %s", error)
