"""A version goes into a lane: its files are those that were approved and signed, and it answers as it did offline."""

from collections.abc import Callable

from visionloop.project import Project
from visionloop.records import Candidate
from visionloop.serving.golden import read_golden
from visionloop.stages.release.checks import check_sound, smoke
from visionloop.stages.release.loaded import loaded
from visionloop.stores import Stores
from visionloop.stores.lane_lock import lane_lock
from visionloop.stores.packaged import CONFIG, GOLDEN, MODEL, read_packaged
from visionloop.stores.triton import Lane, ModelRefused


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

    Raises ModelRefused when Triton does not load it or answers otherwise, the entry on disk is then still the new one;
    IntegrityError for a file that is not the candidate's, or that nobody vouches for and lies in the lane's entry.
    """
    files = read_packaged(candidate, stores, GOLDEN)
    config = files[CONFIG].decode()
    entry, one = lane.entry(project.name), loaded(lane, project, candidate, config)
    with lane_lock(stores.settings, lane.name, project.name):
        allowed()
        entry.write(
            version=candidate.version,
            config=config,
            model=files[MODEL],
            sha256=candidate.model_sha256,
            signature=candidate.signature,
        )
        entry.check()
        lane.load(project.name)
    served = lane.served(project.name)
    if served != candidate.version:
        raise ModelRefused(f"the {lane.name} lane serves version {served}, expected {candidate.version}")
    smoke(one, read_golden(files[GOLDEN]), project.release)
    check_sound(one)
    entry.prune()
