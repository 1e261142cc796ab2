"""Do records, registry, object store, weights and lanes agree about a project? Puts right what is safe to."""

import logging

from visionloop.errors import IntegrityError, NotFound
from visionloop.project import Project
from visionloop.records import Candidate, Release, RolloutState
from visionloop.serving.consistency import Difference, Facts, LaneFacts, differences
from visionloop.stages.release.loading import check_signature, fetch, put_back
from visionloop.stages.release.rollout import STATE, empty_canary, last_release, running
from visionloop.stores import Stores
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
        empty_canary(project, stores)
    elif difference.repair == "tidy":
        rollout = running(project, stores)
        if rollout:
            rollout.finished()
    log.info("%s: %s: %s", project.name, difference.text, difference.advice)


def _facts(project: Project, stores: Stores) -> Facts:
    serving, rollout = last_release(project, stores), running(project, stores)
    state = stores.state.read(RolloutState, project.name, STATE) or RolloutState()
    champion, weights = stores.registry.champion(project.name), stores.routes.current(project.name)
    ended = rollout is not None and stores.ledger.find(Release, project.name, rollout.id) is not None
    return Facts(
        released=serving.version if serving else None,
        alias=champion.version if champion else None,
        running=rollout.candidate.version if rollout else None,
        phase=state.phase,
        ended=ended,
        stable=_lane(project, stores.stable),
        canary=_lane(project, stores.canary),
        weights=(weights.stable, weights.canary) if weights else None,
        mirrored=weights is not None and weights.mirrored,
        damaged=_damaged(project, serving, stores),
    )


def _lane(project: Project, lane: Lane) -> LaneFacts:
    return LaneFacts(loaded=lane.served(project.name), on_disk=lane.entry(project.name).version())


def _damaged(project: Project, serving: Release | None, stores: Stores) -> tuple[str, ...]:
    """Artifacts that no lane could load any more."""
    if serving is None:
        return ()
    candidate = stores.ledger.get(Candidate, serving.candidate)
    found, files = [], {}
    for name in candidate.artifacts:
        try:
            files[name] = fetch(candidate, name, stores)
        except (NotFound, IntegrityError) as error:
            log.warning("%s: %s", name, error)
            found.append(name)
    if not found:
        try:
            check_signature(project, candidate, files, stores)
        except IntegrityError as error:
            log.warning("%s", error)
            found.append("the signature")
    return tuple(found)
