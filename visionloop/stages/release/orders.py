"""What people may ask of a release in progress: where it stands, to pause, to go on, to be promoted at once."""

import logging
from datetime import UTC, datetime
from typing import Literal

from visionloop.errors import StageError
from visionloop.monitoring.champion import serving_release
from visionloop.project import Project
from visionloop.records import Cost, Frozen, Order, Release, RolloutState
from visionloop.serving.rollout import measure
from visionloop.stages.release.rollout import STATE, running
from visionloop.stores import Stores

log = logging.getLogger(__name__)


class Finding(Frozen):
    """One of the rates that decide, so far."""

    name: str
    canary: tuple[int, int]
    """Events, trials."""
    stable: tuple[int, int] | None
    allowed: float
    finding: Literal["worse", "fine", "open"]
    needed: bool
    """Has it to be shown to be fine before a promotion?"""
    bounds: tuple[float, float]
    """Of the canary's rate, with the confidence that the policy asks."""


class Ended(Frozen):
    """A release, or a rollback, that came to its end."""

    version: int
    outcome: Literal["promoted", "rolled_back", "rejected"]
    at: datetime
    reason: str
    approved_by: str
    previous_version: int | None
    """What served then."""
    record: str
    """Its id."""


class Status(Frozen):
    """Where the release in progress stands."""

    project: str
    serving: int | None
    """The version that serves, None before the first release."""
    version: int | None
    """The version that is being released, None when nothing is in progress."""
    state: RolloutState
    findings: list[Finding]
    cost: Cost | None
    """Of the version that is being released, else of the one that serves; None: it was not measured (yet)."""
    last: Ended | None
    """What came to its end last; None before the first release."""

    @property
    def paused(self) -> bool:
        """Was it last asked to pause?"""
        return self.state.paused


def history(project: Project, stores: Stores) -> list[Ended]:
    """All releases and rollbacks, the newest first."""
    return [_ended(one) for one in reversed(stores.ledger.all(Release, project.name))]


def status(project: Project, stores: Stores) -> Status:
    """What is recorded; nothing is asked of any server but the object store."""
    rollout = running(project, stores)
    state = stores.state.read(RolloutState, project.name, STATE) or RolloutState()
    policy = project.release
    findings = [
        Finding(
            name=one.name,
            canary=(one.canary.events, one.canary.trials),
            stable=(one.stable.events, one.stable.trials) if one.stable else None,
            allowed=one.allowed,
            finding=one.finding,
            needed=one.needed,
            bounds=one.canary.bounds(policy.miss_rate),
        )
        for one in (measure(state.steps, policy, state.live) if rollout else [])
    ]
    releases = stores.ledger.all(Release, project.name)
    serving = serving_release(releases)
    return Status(
        project=project.name,
        serving=serving.version if serving else None,
        version=rollout.candidate.version if rollout else None,
        state=state,
        findings=findings,
        cost=state.cost if rollout else serving.cost if serving else None,
        last=_ended(releases[-1]) if releases else None,
    )


def order(project: Project, verb: Literal["pause", "resume", "promote"], by: str, reason: str, stores: Stores) -> Order:
    """Write an order into the release in progress; its process obeys at its next look.

    A fault still ends the release, whatever was ordered. Raises StageError when nothing is in progress that could obey.
    """
    rollout = running(project, stores)
    if rollout is None or stores.ledger.find(Release, project.name, rollout.id):
        raise StageError(f"no release of {project.name} is in progress")
    wanted = Order(verb=verb, by=by, reason=reason, at=datetime.now(UTC))

    def change(state: RolloutState | None) -> RolloutState:
        if state is None or not rollout.is_mine(state):
            raise StageError(f"the release of version {rollout.candidate.version} ended at this moment")
        _check(project, state, verb)
        return state.model_copy(update={"orders": [*state.orders, wanted], "updated_at": wanted.at})

    stores.state.update(RolloutState, project.name, STATE, change)
    log.info("%s: %s by %s: %s", project.name, verb, by, reason)
    return wanted


def _check(project: Project, state: RolloutState, verb: str) -> None:
    if state.phase == "promoting":
        raise StageError(f"{project.name} is being promoted already: it is too late to {verb}")
    if verb == "promote" and state.phase != "canary":
        raise StageError(f"{project.name} is in its {state.phase}: it can be promoted once its canary has begun")
    if verb == "resume" and not state.paused:
        raise StageError(f"the release of {project.name} is not paused")
    if verb == "pause" and state.paused:
        raise StageError(f"the release of {project.name} is paused already")


def _ended(release: Release) -> Ended:
    return Ended(
        version=release.version,
        outcome=release.outcome,
        at=release.created_at,
        reason=release.reason,
        approved_by=release.decided_by,
        previous_version=release.previous_version,
        record=release.id,
    )
