"""Shadow: the candidate answers production traffic in the canary lane before any client sees an answer of it.

Live traffic first; where there is little, what was captured before is asked again, and the evidence says so.
"""

import logging
from collections.abc import Iterator

import numpy as np

from visionloop import layout
from visionloop.errors import DataError, StoreError
from visionloop.monitoring.windows import parse_capture
from visionloop.project import Project
from visionloop.records import Release, RolloutState, ShadowEvidence
from visionloop.serving.captured import Matrix, Pixels, matrix, to_images, usable
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.replay import describe, hold_together, judge
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.mirror import mirror
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores import Stores
from visionloop.stores.tables import workspace
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)
COLUMNS = ("probabilities", "image", "height", "width", "channels")


def shadow(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Mirror, then replay; a Release record says why the candidate went no further."""
    rollout = open_rollout(project, inputs, stores)
    done = rollout.finished()
    if done:
        return done
    state = rollout.require("shadow", "canary", "promoting")
    if state.phase != "shadow":
        return state
    vitals = Vitals(rollout)
    answered = _Answered(len(project.task.classes))
    (before, found, failed), fault = mirror(rollout, vitals)
    answered.add_live(before, found, failed)
    fault = fault or judge(answered.evidence(), project.release) or _replay(rollout, vitals, answered)
    seen = answered.evidence()
    log.info("shadow of %s: %s", project.name, describe(seen))
    rollout.advance(shadow=seen, memory=vitals.readings)
    return rollout.end("rejected", f"in shadow: {fault}") if fault else rollout.advance(phase="canary")


def _replay(rollout: Rollout, vitals: Vitals, answered: "_Answered") -> str | None:
    """Why the candidate may not go on; no more is asked of one that is known to be unfit."""
    project = rollout.project
    for images, before in _captured(rollout, project.release.shadow_images - answered.evidence().images):
        for start in range(0, len(images), project.serving.max_batch_size):
            part = slice(start, start + project.serving.max_batch_size)
            fault = _ask(rollout, vitals, answered, images[part], before[part])
            if fault:
                return fault
        fault = vitals.look()
        if fault:
            return fault
    return judge(answered.evidence(), project.release)


def _ask(rollout: Rollout, vitals: Vitals, answered: "_Answered", images: Pixels, before: Matrix) -> str | None:
    """Ask for a batch; after one that failed, why no other is worth asking for."""
    try:
        found = rollout.stores.canary.infer(rollout.project.name, images, version=rollout.candidate.version)
    except (StoreError, ModelRefused) as error:
        log.warning("a replayed request failed: %s", error)
        answered.failed += len(images)
        reason = vitals.why_silent(error, answered=any(map(len, answered.candidate)))
        if reason is None and isinstance(error, StoreError):
            raise
        return reason or judge(answered.evidence(), rollout.project.release)
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


def _captured(rollout: Rollout, left: int) -> Iterator[tuple[Pixels, Matrix]]:
    """Images that the champion answered, and its answers; the newest files first, up to `left` images."""
    serving, stores, project = rollout.serving(), rollout.stores, rollout.project
    assert serving is not None  # the shadow is left out where nothing serves
    prefix = f"{layout.captures(project.name)}version={serving.version}/"
    captures = [found for item in stores.objects.scan(prefix) if (found := parse_capture(item.key))]
    captures = [capture for capture in captures if capture.lane != SHADOW]
    with workspace(stores.settings.home) as folder:
        for capture in sorted(captures, key=lambda one: one.at_ms, reverse=True):
            if left <= 0:
                return
            path = folder / "capture.parquet"
            stores.objects.download(capture.key, path)
            images, answers = _read(rollout, capture.key, str(path))
            yield images[:left], answers[:left]
            left -= len(images)


def _read(rollout: Rollout, key: str, path: str) -> tuple[Pixels, Matrix]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = rollout.project.task
    try:
        rows = pq.read_table(path, columns=list(COLUMNS))
        rows = rows.filter(usable(rows, task.image, len(task.classes)))
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{rollout.stores.objects.uri(key)} is no capture file: {error}") from error
    answers = matrix(rows["probabilities"]).reshape(len(rows), len(task.classes))
    return to_images(rows["image"], task.image), answers
