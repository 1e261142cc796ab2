"""What a loaded model must stand before it gets any traffic: answers as offline, sound, in good time, in its memory."""

import logging
import time

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import StoreError
from visionloop.project import Release as Policy
from visionloop.serving.envoy_routes import LANES_SHARE
from visionloop.serving.golden import Golden, extremes, unsound
from visionloop.serving.memory import needed_mib
from visionloop.serving.rollout import too_slow
from visionloop.stages.release.loaded import Loaded
from visionloop.stages.release.vitals import Vitals
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

TIMED_ROUNDS, FEWEST_ROUNDS = 15, 3
"""Batches in each lane; the first ones warm up, which the median does not see."""
TIMED_SECONDS = 30.0
"""No round but the fewest begins later than this."""
ENDURED_BATCHES = 100
ENDURED_SECONDS = 5.0
"""A model that takes longer for its batches is watched for this long, and further in shadow and canary."""
READ_EVERY = 4
"""Batches between two readings of the memory."""
EXTREMES = ("black", "white", "noisy", "half-black")


def smoke(one: Loaded, golden: Golden, policy: Policy) -> None:
    """Ask for all golden samples, past the endpoint. Raises ModelRefused when answers differ from the offline ones."""
    size, wrong = one.model.max_batch_size, 0
    where = f"version {one.version} in the {one.lane.name} lane"
    for start in range(0, len(golden.images), size):
        part = Golden(golden.images[start : start + size], golden.probabilities[start : start + size])
        found = one.ask(part.images)
        if found.shape != part.probabilities.shape:
            raise ModelRefused(f"answers have shape {found.shape}, offline they had {part.probabilities.shape}")
        bad = unsound(found)
        if bad.any():
            raise ModelRefused(
                f"{where} answers {bad.sum()} of {len(part.images)} golden samples with no probabilities, "
                f"one with {found[bad][0]}"
            )
        wrong += part.disagreements(found)
    allowed = policy.max_disagreement * len(golden.images)
    log.info("smoke test of %s: %d of %d differ", where, wrong, len(golden.images))
    if wrong > allowed:
        raise ModelRefused(
            f"{where} answers {wrong} of {len(golden.images)} golden samples otherwise than offline, "
            f"allowed {allowed:.1f}"
        )


def check_sound(one: Loaded) -> None:
    """Black, white and noisy images too get answers that are probabilities. Raises ModelRefused when they don't."""
    where = f"version {one.version} in the {one.lane.name} lane"
    images, size = extremes(*one.model.image), one.model.max_batch_size
    found = np.concatenate([one.ask(images[start : start + size]) for start in range(0, len(images), size)])
    expected = (len(EXTREMES), len(one.model.labels))
    if found.shape != expected:
        raise ModelRefused(
            f"{where} answers {len(EXTREMES)} images with {list(found.shape)} numbers, "
            f"expected {list(expected)}: one for each class"
        )
    bad = [name for name, wrong in zip(EXTREMES, unsound(found), strict=True) if wrong]
    if bad:
        raise ModelRefused(
            f"{where} answers a {', '.join(bad)} image with {found[unsound(found)][0]}: "
            "expected probabilities that add up to 1"
        )


def check_speed(candidate: Loaded, champion: Loaded, golden: Golden, policy: Policy) -> None:
    """Time a batch that both take in both lanes, in turns.

    Raises ModelRefused when the candidate is slower, StoreError when the champion, which serves, does not answer.
    """
    images = golden.images[: batch_of_both(candidate, champion)]
    times: tuple[list[float], list[float]] = [], []
    began = time.monotonic()
    for number in range(TIMED_ROUNDS):
        if number >= FEWEST_ROUNDS and time.monotonic() - began > TIMED_SECONDS:
            break
        for one, taken in zip((candidate, champion), times, strict=True):
            asked = time.perf_counter()
            _ask_beside(one, images)
            taken.append((time.perf_counter() - asked) * 1000)
    reason = too_slow(*times, policy)
    if reason:
        raise ModelRefused(reason)


def batch_of_both(candidate: Loaded, champion: Loaded | None) -> int:
    """The largest request that both versions take, which may have been packaged with different settings."""
    return min(one.model.max_batch_size for one in (candidate, champion) if one)


def _ask_beside(one: Loaded, images: NDArray[np.uint8]) -> None:
    """A fault of the version that serves is no verdict about the candidate."""
    try:
        one.ask(images)
    except ModelRefused as error:
        if one.lane.name == "canary":
            raise
        raise StoreError(f"version {one.version}, which the candidate is timed beside: {error}") from error


def check_endurance(one: Loaded, golden: Golden, vitals: Vitals) -> None:
    """Send many of the largest requests.

    Raises ModelRefused for too much memory, a leak, a server that dies, or answers that no client waits for.
    """
    images = np.resize(golden.images, (one.model.images_per_request, *golden.images.shape[1:]))
    until, fastest = time.monotonic() + ENDURED_SECONDS, float("inf")
    for number in range(1, ENDURED_BATCHES + 1):
        asked = time.perf_counter()
        try:
            one.ask(images)
        except (StoreError, ModelRefused) as error:
            reason = vitals.why_silent(error, answered=number > 1)
            if reason is None:
                raise
            raise ModelRefused(f"after {number} batches of {len(images)}: {reason}") from error
        fastest = min(fastest, time.perf_counter() - asked)
        late = time.monotonic() > until
        reason = vitals.look() if late or number % READ_EVERY == 0 else None
        if reason:
            raise ModelRefused(f"after {number} batches of {len(images)}: {reason}")
        if late:
            break
    if fastest > one.model.timeout_seconds / LANES_SHARE:
        raise ModelRefused(one.slower_than(fastest, len(images)))
    log.info("version %d needs %.0f MiB after %d batches", one.version, needed_mib(vitals.readings), number)
