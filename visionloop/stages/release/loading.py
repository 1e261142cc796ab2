"""A version goes into a lane: its files are those that were approved and signed, and it answers as it did offline."""

from collections.abc import Callable, Mapping
from pathlib import Path

from visionloop.packaging.signing import verify
from visionloop.project import Project
from visionloop.records import Candidate
from visionloop.serving.golden import read_golden
from visionloop.stages.release.checks import check_sound, smoke
from visionloop.stores import Stores
from visionloop.stores.lane_lock import lane_lock
from visionloop.stores.objects import get_artifact
from visionloop.stores.triton import Lane, ModelRefused

MODEL, CONFIG, GOLDEN = "model.onnx", "config.pbtxt", "golden.npz"


def load(
    lane: Lane,
    project: Project,
    candidate: Candidate,
    stores: Stores,
    *,
    allowed: Callable[[], object] = lambda: None,
) -> None:
    """Write the entry, load it, and hold its answers against the offline ones.

    `allowed` is called when nobody else can change the lane's entry any more; what it raises leaves it as it is.

    Raises ModelRefused when Triton does not load it or answers otherwise, IntegrityError for a file that is not the
    candidate's; the entry on disk is then still the new one.
    """
    model, config, golden = (fetch(candidate, name, stores) for name in (MODEL, CONFIG, GOLDEN))
    check_signature(project, candidate, {MODEL: model, CONFIG: config}, stores)
    entry = lane.entry(project.name)
    with lane_lock(stores.settings, lane.name, project.name):
        allowed()
        entry.write(
            version=candidate.version,
            config=config.decode(),
            model=model,
            sha256=candidate.model_sha256,
            signature=candidate.signature,
        )
        lane.load(project.name)
    served = lane.served(project.name)
    if served != candidate.version:
        raise ModelRefused(f"the {lane.name} lane serves version {served}, expected {candidate.version}")
    smoke(lane, project, candidate.version, read_golden(golden))
    check_sound(lane, project, candidate.version)
    entry.prune()


def check_signature(project: Project, candidate: Candidate, files: Mapping[str, bytes], stores: Stores) -> None:
    """Raises IntegrityError when model and configuration are not what this installation signed."""
    key = Path(stores.settings.need("verify_key"))
    signed = {name: files[name] for name in (MODEL, CONFIG)}
    verify(signed, candidate.signature, key, what=f"version {candidate.version} of {project.name}")


def fetch(candidate: Candidate, name: str, stores: Stores) -> bytes:
    """An artifact's bytes. Raises IntegrityError when they are not those that the candidate vouches for."""
    return get_artifact(stores.objects, candidate, name)
