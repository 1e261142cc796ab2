"""What the candidate costs beside the champion: the same batches in both lanes, in turns, timed by Triton itself."""

import logging
import time

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import StoreError
from visionloop.records import Candidate, Cost
from visionloop.serving.cost import cost, seconds_per_1000, told
from visionloop.serving.golden import read_golden
from visionloop.stages.release.checks import batch_of_both
from visionloop.stages.release.loaded import Loaded, find_loaded
from visionloop.stages.release.rollout import Rollout
from visionloop.stores.objects import get_artifact
from visionloop.stores.packaged import GOLDEN
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

ROUNDS = 15
ENOUGH_SECONDS = 5.0
"""No round begins later than this."""


def measure_cost(rollout: Rollout) -> Cost | None:
    """Ask for golden samples, a batch that both take a request; None where it could not be measured.

    That is no verdict: a lane did not answer, or other traffic made all of the requests part of other runs. Called
    when the candidate has answered before, so that both models are warm.
    """
    project, stores = rollout.project, rollout.stores
    try:
        candidate, champion = find_loaded(stores.canary, project, rollout.candidate, stores), _champion(rollout)
        golden = read_golden(get_artifact(stores.objects, rollout.candidate, GOLDEN))
        images = golden.images[: batch_of_both(candidate, champion)]
        seconds = _seconds_per_1000([candidate, *([champion] if champion else [])], images)
    except (ModelRefused, StoreError) as error:
        log.warning("what %s costs was not measured: %s", project.name, error)
        return None
    if seconds[0] is None:
        return None
    beside = seconds[1] if champion else None
    found = cost(len(images), seconds[0], beside, project.price, instances=candidate.instances)
    log.info("%s version %d: %s", project.name, candidate.version, told(found))
    return found


def _champion(rollout: Rollout) -> Loaded | None:
    serving, stores = rollout.serving(), rollout.stores
    if serving is None:
        return None
    return find_loaded(stores.stable, rollout.project, stores.ledger.get(Candidate, serving.candidate), stores)


def _seconds_per_1000(lanes: list[Loaded], images: NDArray[np.uint8]) -> list[float | None]:
    """Of each, asked in turns."""
    before = [one.lane.batches(one.model.name, one.version) for one in lanes]
    began = time.monotonic()
    for _ in range(ROUNDS):
        for one in lanes:
            one.ask(images)
        if time.monotonic() - began > ENOUGH_SECONDS:
            break
    after = [one.lane.batches(one.model.name, one.version) for one in lanes]
    return [seconds_per_1000(*pair, len(images)) for pair in zip(before, after, strict=True)]
