"""What a loaded model must stand before it gets any traffic: answers as offline, sound, in good time, in its memory."""

import logging
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import StoreError
from visionloop.project import Project
from visionloop.serving.client.model import of_project
from visionloop.serving.golden import Golden, extremes, unsound
from visionloop.serving.memory import needed_mib
from visionloop.serving.rollout import too_slow
from visionloop.stages.release.vitals import Vitals
from visionloop.stores.triton import Lane, ModelRefused

log = logging.getLogger(__name__)

TIMED_ROUNDS = 15
"""Batches in each lane; the first ones warm up, which the median does not see."""
ENDURED_BATCHES = 100
ENDURED_SECONDS = 5.0
"""A model that takes longer for its batches is watched for this long, and further in shadow and canary."""
READ_EVERY = 4
"""Batches between two readings of the memory."""
EXTREMES = ("black", "white", "noisy", "half-black")


def smoke(lane: Lane, project: Project, version: int, golden: Golden) -> None:
    """Ask for all golden samples, past the endpoint. Raises ModelRefused when answers differ from the offline ones."""
    size, wrong = project.serving.max_batch_size, 0
    for start in range(0, len(golden.images), size):
        part = Golden(golden.images[start : start + size], golden.probabilities[start : start + size])
        found = lane.infer(project.name, part.images, version=version)
        if found.shape != part.probabilities.shape:
            raise ModelRefused(f"answers have shape {found.shape}, offline they had {part.probabilities.shape}")
        bad = unsound(found)
        if bad.any():
            raise ModelRefused(
                f"version {version} in the {lane.name} lane answers {bad.sum()} of {len(part.images)} golden samples "
                f"with no probabilities, one with {found[bad][0]}"
            )
        wrong += part.disagreements(found)
    allowed = project.release.max_disagreement * len(golden.images)
    log.info("smoke test of version %d in the %s lane: %d of %d differ", version, lane.name, wrong, len(golden.images))
    if wrong > allowed:
        raise ModelRefused(
            f"version {version} in the {lane.name} lane answers {wrong} of {len(golden.images)} golden samples "
            f"otherwise than offline, allowed {allowed:.1f}"
        )


def check_sound(lane: Lane, project: Project, version: int) -> None:
    """Black, white and noisy images too get answers that are probabilities. Raises ModelRefused when they don't."""
    shape = project.task.image
    found = lane.infer(project.name, extremes(shape.height, shape.width, shape.channels), version=version)
    expected = (len(EXTREMES), len(project.task.classes))
    if found.shape != expected:
        raise ModelRefused(
            f"version {version} in the {lane.name} lane answers {len(EXTREMES)} images with {list(found.shape)} "
            f"numbers, expected {list(expected)}: one for each class"
        )
    bad = [name for name, wrong in zip(EXTREMES, unsound(found), strict=True) if wrong]
    if bad:
        raise ModelRefused(
            f"version {version} in the {lane.name} lane answers a {', '.join(bad)} image with "
            f"{found[unsound(found)][0]}: expected probabilities that add up to 1"
        )


def check_speed(lanes: Mapping[Lane, int], project: Project, golden: Golden) -> None:
    """Time a batch in both lanes, in turns; the canary's version comes first.

    Raises ModelRefused when it is slower, StoreError when the other, which serves, does not answer.
    """
    images = golden.images[: project.serving.max_batch_size]
    times: list[list[float]] = [[] for _ in lanes]
    for _ in range(TIMED_ROUNDS):
        for (lane, version), taken in zip(lanes.items(), times, strict=True):
            began = time.perf_counter()
            _ask(lane, project, images, version)
            taken.append((time.perf_counter() - began) * 1000)
    reason = too_slow(times[0], times[1], project.release)
    if reason:
        raise ModelRefused(reason)


def _ask(lane: Lane, project: Project, images: NDArray[np.uint8], version: int) -> None:
    try:
        lane.infer(project.name, images, version=version)
    except ModelRefused as error:
        if lane.name == "canary":
            raise
        raise StoreError(f"version {version}, which the candidate is timed beside: {error}") from error


def check_endurance(lane: Lane, project: Project, version: int, golden: Golden, vitals: Vitals) -> None:
    """Send many of the largest requests. Raises ModelRefused for too much memory, a leak, or a server that dies."""
    images = np.resize(golden.images, (of_project(project).images_per_request, *golden.images.shape[1:]))
    until = time.monotonic() + ENDURED_SECONDS
    for number in range(1, ENDURED_BATCHES + 1):
        try:
            lane.infer(project.name, images, version=version)
        except (StoreError, ModelRefused) as error:
            reason = vitals.why_silent(error, answered=number > 1)
            if reason is None:
                raise
            raise ModelRefused(f"after {number} batches of {len(images)}: {reason}") from error
        late = time.monotonic() > until
        reason = vitals.look() if late or number % READ_EVERY == 0 else None
        if reason:
            raise ModelRefused(f"after {number} batches of {len(images)}: {reason}")
        if late:
            break
    log.info("version %d needs %.0f MiB after %d batches", version, needed_mib(vitals.readings), number)
