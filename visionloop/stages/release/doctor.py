"""Do records, registry, object store, weights and lanes agree about a project? Puts right what is safe to."""

import logging
from datetime import UTC, datetime

from visionloop.errors import IntegrityError, NotFound
from visionloop.project import Project
from visionloop.records import Candidate, Release, RolloutState
from visionloop.serving.consistency import Difference, Facts, LaneFacts, differences
from visionloop.stages.release.ending import end, finished, put_back
from visionloop.stages.release.inputs import RollbackInputs
from visionloop.stages.release.rollout import STATE, empty_canary, last_release, running
from visionloop.stages.release.way_back import rollback
from visionloop.stores import Stores
from visionloop.stores.objects import get_artifact
from visionloop.stores.packaged import check_signed
from visionloop.stores.triton import Lane

log = logging.getLogger(__name__)


def examine(project: Project, stores: Stores) -> list[Difference]:
    """Ask everyone. Raises StoreError when a server cannot be asked."""
    return differences(_facts(project, stores))


def repair(project: Project, difference: Difference, stores: Stores) -> None:
    """Put one difference right; nothing happens for one that needs a decision."""
    serving = last_release(project, stores)
    if difference.repair == "load":
        put_back(project, serving, stores)
    elif difference.repair == "alias":
        stores.registry.set_champion(project.name, serving.version if serving else None)
    elif difference.repair == "weights":
        stores.routes.set(project, stable=100, canary=0)
    elif difference.repair == "empty_canary":
        empty_canary(project, stores, unless=lambda: running(project, stores) is not None)
    elif difference.repair == "way_back":
        _finish_way_back(project, stores)
    elif difference.repair in ("tidy", "call_off"):
        rollout = running(project, stores)
        if rollout and not finished(rollout) and difference.repair == "call_off":
            end(rollout, "rolled_back", f"called off by the doctor: {difference.text}")
    log.info("%s: %s: %s", project.name, difference.text, difference.advice)


def _finish_way_back(project: Project, stores: Stores) -> None:
    state = stores.state.read(RolloutState, project.name, STATE)
    if state and state.way_back:
        back = state.way_back
        rollback(project, RollbackInputs(to_version=back.to_version, by=back.by, reason=back.reason), stores)


def _facts(project: Project, stores: Stores) -> Facts:
    serving, rollout = last_release(project, stores), running(project, stores)
    state = stores.state.read(RolloutState, project.name, STATE) or RolloutState()
    champion, weights = stores.registry.champion(project.name), stores.routes.current(project.name)
    ended = rollout is not None and (state.ending is not None or rollout.recorded() is not None)
    left_alone = datetime.now(UTC) - state.updated_at
    return Facts(
        released=serving.version if serving else None,
        alias=champion.version if champion else None,
        running=rollout.candidate.version if rollout else None,
        phase=state.phase,
        ended=ended,
        percent=state.canary_percent if state.phase == "canary" else 0,
        left_alone_minutes=left_alone.total_seconds() / 60,
        way_back=state.way_back.to_version if state.way_back else None,
        stable=_lane(project, stores.stable),
        canary=_lane(project, stores.canary),
        weights=(weights.stable, weights.canary) if weights else None,
        mirrored=weights is not None and weights.mirrored,
        damaged=_damaged(serving, stores),
    )


def _lane(project: Project, lane: Lane) -> LaneFacts:
    return LaneFacts(loaded=lane.served(project.name), on_disk=lane.entry(project.name).version())


def _damaged(serving: Release | None, stores: Stores) -> tuple[str, ...]:
    """Artifacts that no lane could load any more."""
    if serving is None:
        return ()
    candidate = stores.ledger.get(Candidate, serving.candidate)
    found, files = [], {}
    for name in candidate.artifacts:
        try:
            files[name] = get_artifact(stores.objects, candidate, name)
        except (NotFound, IntegrityError) as error:
            log.warning("%s: %s", name, error)
            found.append(name)
    if not found:
        try:
            check_signed(candidate, files, stores)
        except IntegrityError as error:
            log.warning("%s", error)
            found.append("the signature")
    return tuple(found)
