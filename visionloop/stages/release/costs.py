"""What the candidate costs beside the champion: the same batches in both lanes, in turns, timed by Triton itself."""

import logging
import time

from visionloop.records import Cost
from visionloop.serving.cost import cost, seconds_per_1000, told
from visionloop.serving.golden import read_golden
from visionloop.stages.release.rollout import Rollout
from visionloop.stores.objects import get_artifact
from visionloop.stores.triton import Lane

log = logging.getLogger(__name__)

ROUNDS = 15
ENOUGH_SECONDS = 5.0
"""No round begins later than this."""
GOLDEN = "golden.npz"


def measure_cost(rollout: Rollout) -> Cost | None:
    """Ask for golden samples, a full batch a request; None where other traffic made all of them part of other runs.

    Called when the candidate has answered before, so that both models are warm. Raises ModelRefused and StoreError.
    """
    project, serving = rollout.project, rollout.serving()
    lanes: dict[Lane, int] = {rollout.stores.canary: rollout.candidate.version}
    if serving:
        lanes[rollout.stores.stable] = serving.version
    golden = read_golden(get_artifact(rollout.stores.objects, rollout.candidate, GOLDEN))
    images = golden.images[: project.serving.max_batch_size]
    before = [lane.batches(project.name, version) for lane, version in lanes.items()]
    began = time.monotonic()
    for _ in range(ROUNDS):
        for lane, version in lanes.items():
            lane.infer(project.name, images, version=version)
        if time.monotonic() - began > ENOUGH_SECONDS:
            break
    after = [lane.batches(project.name, version) for lane, version in lanes.items()]
    seconds = [seconds_per_1000(*pair, len(images)) for pair in zip(before, after, strict=True)]
    if seconds[0] is None:
        return None
    champion = seconds[1] if len(seconds) > 1 else None
    found = cost(len(images), seconds[0], champion, project.price, instances=project.serving.instances)
    log.info("%s version %d: %s", project.name, rollout.candidate.version, told(found))
    return found
