"""Bundle: an approved version of a model as one file for machines that run no server. Nothing is recorded."""

import logging
from dataclasses import dataclass

from visionloop.errors import IntegrityError, NotFound
from visionloop.packaging.bundle import Standing, pack, standing
from visionloop.project import Project
from visionloop.records import Approval, Candidate, Frozen, Release, record_id
from visionloop.stores import Stores
from visionloop.stores.packaged import GOLDEN, MODEL, read_packaged

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """What to bundle."""

    version: int | None = None
    """Unset: the champion."""


@dataclass(frozen=True)
class Bundle:
    """A candidate as one file."""

    candidate: Candidate
    standing: Standing
    data: bytes


def run(project: Project, inputs: Inputs, stores: Stores) -> Bundle:
    """Bundle a version; one that its release did not promote is bundled with a warning.

    Raises NotFound without such a version, IntegrityError for one not approved.
    """
    uri = _named(project, inputs.version, stores)
    candidate = stores.ledger.get(Candidate, uri)
    _check(project, uri, candidate, stores)
    files = read_packaged(candidate, stores, GOLDEN)
    ended = standing(uri, stores.ledger.all(Release, project.name))
    data = pack(candidate, model=files[MODEL], golden=files[GOLDEN], outcome=ended.outcome)
    log.info("bundled version %d of %s: %d bytes", candidate.version, project.name, len(data))
    if ended.outcome != "promoted":
        told = ended.outcome.replace("_", " ")
        log.warning(
            "version %d of %s is bundled although it is %s: %s", candidate.version, project.name, told, ended.reason
        )
    return Bundle(candidate, ended, data)


def _named(project: Project, version: int | None, stores: Stores) -> str:
    """URI of the candidate."""
    if version is None:
        champion = stores.registry.champion(project.name)
        if champion is None:
            raise NotFound(f"{project.name} has no champion yet: release a version, or name an approved one")
        return champion.candidate
    known = stores.ledger.all(Candidate, project.name)
    for candidate in reversed(known):
        if candidate.version == version:
            return stores.ledger.uri(candidate)
    versions = ", ".join(str(number) for number in sorted({candidate.version for candidate in known}))
    raise NotFound(f"{project.name} has no version {version}: there are {versions or 'none'}")


def _check(project: Project, uri: str, candidate: Candidate, stores: Stores) -> None:
    """What nobody let go goes nowhere, the edge included."""
    approval = stores.ledger.find(Approval, project.name, record_id("approval", project.name, candidate=uri))
    if candidate.project != project.name:
        raise IntegrityError(f"candidate {uri} is of project {candidate.project}, not {project.name}")
    if approval is None or approval.decision != "approved" or approval.model_sha256 != candidate.model_sha256:
        found = "nobody has decided about it" if approval is None else f"it is {approval.decision} by {approval.by}"
        raise IntegrityError(
            f"version {candidate.version} of {project.name} is not approved for bundling: {found}; approve it first"
        )
