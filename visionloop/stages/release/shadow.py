"""Shadow: the candidate answers production traffic in the canary lane before any client sees an answer of it.

Live traffic first; where there is little, what was captured before is asked again, and the evidence says so.
"""

import logging
from collections.abc import Iterator

import numpy as np

from visionloop.errors import StoreError
from visionloop.monitoring.windows import Capture
from visionloop.project import Project
from visionloop.project import Release as Policy
from visionloop.records import Release, RolloutState, ShadowEvidence
from visionloop.serving.captured import Matrix, Pixels, matrix, to_images, usable
from visionloop.serving.client.model import Model
from visionloop.serving.replay import describe, hold_together, judge
from visionloop.stages.release.captures import newest_served, read_rows, reading
from visionloop.stages.release.ending import end, finished
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loaded import Loaded, find_loaded
from visionloop.stages.release.mirror import mirror
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores import Stores
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)
COLUMNS = ("probabilities", "image", "height", "width", "channels")
SPARSE = 10
"""Rows that are read at most, in those that hold the wanted images where the project keeps its share of them."""


def shadow(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Mirror, then replay; a Release record says why the candidate went no further."""
    rollout = open_rollout(project, inputs, stores)
    done = finished(rollout)
    if done:
        return done
    state = rollout.require("shadow", "canary", "promoting")
    if state.phase != "shadow":
        return state
    vitals, one = Vitals(rollout), find_loaded(stores.canary, project, rollout.candidate, stores)
    vitals.look()  # which server it is that answers from now on
    answered = _Answered(len(one.model.labels))
    (before, found, failed), fault = mirror(rollout, vitals, classes=len(one.model.labels))
    answered.add_live(before, found, failed)
    fault = fault or judge(answered.evidence(), project.release) or _replay(rollout, one, vitals, answered)
    seen = answered.evidence()
    log.info("shadow of %s: %s", project.name, describe(seen))
    rollout.advance(shadow=seen, memory=vitals.readings)
    return end(rollout, "rejected", f"in shadow: {fault}") if fault else rollout.advance(phase="canary")


def _replay(rollout: Rollout, one: Loaded, vitals: Vitals, answered: "_Answered") -> str | None:
    """Why the candidate may not go on; no more is asked of one that is known to be unfit."""
    project, size = rollout.project, one.model.max_batch_size
    for images, before in _captured(rollout, one.model, project.release.shadow_images - answered.evidence().images):
        rollout.mine()
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            fault = _ask(one, project.release, vitals, answered, images[part], before[part])
            if fault:
                return fault
        fault = vitals.look()
        if fault:
            return fault
    return judge(answered.evidence(), project.release)


def _ask(
    one: Loaded, policy: Policy, vitals: Vitals, answered: "_Answered", images: Pixels, before: Matrix
) -> str | None:
    """Ask for a batch; after one that failed, why no other is worth asking for."""
    try:
        found = one.ask(images)
    except (StoreError, ModelRefused) as error:
        log.warning("a replayed request failed: %s", error)
        answered.failed += len(images)
        reason = vitals.why_silent(error, answered=any(map(len, answered.candidate)))
        if reason is None and isinstance(error, StoreError):
            raise
        return reason or judge(answered.evidence(), policy)
    answered.champion.append(before)
    answered.candidate.append(found)
    return None


class _Answered:
    """Both models' answers [N,K] to the same images so far, and how many images the candidate failed."""

    def __init__(self, classes: int) -> None:
        self.champion: list[Matrix] = [np.empty((0, classes), np.float32)]
        self.candidate: list[Matrix] = list(self.champion)
        self.failed = self.mirrored = 0

    def add_live(self, champion: Matrix, candidate: Matrix, failed: int) -> None:
        self.champion.append(champion)
        self.candidate.append(candidate)
        self.failed += failed
        self.mirrored += len(candidate) + failed

    def evidence(self) -> ShadowEvidence:
        champion, candidate = np.concatenate(self.champion), np.concatenate(self.candidate)
        return hold_together(champion, candidate, failed=self.failed, mirrored=self.mirrored)


def _captured(rollout: Rollout, model: Model, left: int) -> Iterator[tuple[Pixels, Matrix]]:
    """Images that the champion answered, and its answers; the newest files first, up to `left` images.

    Where far fewer rows have an image than the project keeps, older files are not looked through for more.
    """
    share, rows = rollout.project.monitoring.capture_images, 0
    if left <= 0 or not share:
        return
    most = SPARSE * left / share
    for capture in newest_served(rollout):
        if rows > most:
            log.info("%d captured rows have fewer images than asked for: older ones are left", rows)
            return
        rows += capture.rows
        images, answers = _read(rollout, model, capture)
        yield images[:left], answers[:left]
        left -= len(images)
        if left <= 0:
            return


def _read(rollout: Rollout, model: Model, capture: Capture) -> tuple[Pixels, Matrix]:
    rows, classes = read_rows(rollout, capture, COLUMNS), len(model.labels)
    with reading(rollout, capture):
        rows = rows.filter(usable(rows, model.shape, classes))
    answers = matrix(rows["probabilities"]).reshape(len(rows), classes)
    return to_images(rows["image"], model.shape), answers
