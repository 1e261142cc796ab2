"""Live traffic for a candidate: what clients ask of the champion goes to the canary lane as well, for a while."""

import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from visionloop.errors import Conflict, StoreError
from visionloop.monitoring.windows import Capture
from visionloop.serving.captured import Matrix
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.replay import hold_together, judge, pair
from visionloop.serving.traffic import read, summed
from visionloop.stages.release.captures import read_rows, served, shadows
from visionloop.stages.release.rollout import Rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores.scrapes import scrape_capture

COLUMNS = ("request_id", "at", "probabilities")
LOOK_SECONDS = 1.0
QUIET_SECONDS = 5.0
"""So long without a request: nobody sends any at this time."""
WRITTEN_SECONDS, LONGEST_SECONDS = 3.0, 15.0
"""When the capture service, which writes every two seconds, has written nothing for so long, it has written all."""
CLOCKS_MS = 5_000
"""By so much the clocks of this machine and the capture service's may differ."""

Answers = dict[str, Matrix]
Pairs = tuple[Matrix, Matrix, int]
"""The champion's answers [N,K], the candidate's, and how many images the candidate failed."""


def mirror(rollout: Rollout, vitals: Vitals) -> tuple[Pairs, str | None]:
    """Mirror until there are enough, the time is over, or nobody asks; and why the candidate must go no further."""
    project, stores = rollout.project, rollout.stores
    nothing = np.empty((0, len(project.task.classes)), np.float32)
    if not (project.release.shadow_seconds and project.monitoring.capture_percent and stores.settings.capture_url):
        return (nothing, nothing, 0), None
    since = _Since(time.time() * 1000 - CLOCKS_MS, _refused(rollout))
    rollout.route(canary=0, mirrored=True)
    try:
        fault = _wait(rollout, vitals, since)
    finally:
        with suppress(Conflict):  # who ended it has set weights of its own
            rollout.route(canary=0)
    if not shadows(rollout, since.at_ms) and _refused(rollout) == since.refused:
        return (nothing, nothing, 0), fault
    if fault is None:
        _await_written(rollout, since)
    return _pairs(rollout, since), fault


@dataclass(frozen=True)
class _Since:
    """When the mirroring began: by this machine's clock, and by the capture service's count of errors."""

    at_ms: float
    refused: int
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Key -> rows, of the files that were read since."""


def _wait(rollout: Rollout, vitals: Vitals, since: _Since) -> str | None:
    """Until there is enough, or no more will come; returns a fault that shows meanwhile."""
    project, stores = rollout.project, rollout.stores
    ends, quiet_since, asked, files = time.monotonic() + project.release.shadow_seconds, time.monotonic(), -1, 0
    while time.monotonic() < ends:
        rollout.mine()
        fault = vitals.look()
        found = shadows(rollout, since.at_ms)
        if len(found) != files and not fault:
            files, (champion, candidate, failed) = len(found), _pairs(rollout, since)
            fault = judge(
                hold_together(champion, candidate, failed=failed, mirrored=len(candidate) + failed), project.release
            )
        images = sum(capture.rows for capture in found)
        if not fault and not stores.canary.ready():
            fault = vitals.why_silent(StoreError("it is down"), answered=images > 0)
            if fault is None:
                return None
        if fault or images >= project.release.shadow_images:
            return fault
        now = stores.routes.lane_stats(project.name)["stable"].requests
        if now != asked:
            quiet_since, asked = time.monotonic(), now
        elif time.monotonic() - quiet_since > QUIET_SECONDS:
            return None
        time.sleep(LOOK_SECONDS)
    return None


def _await_written(rollout: Rollout, since: _Since) -> None:
    ends, changed, before = time.monotonic() + LONGEST_SECONDS, time.monotonic(), -1
    while time.monotonic() < min(ends, changed + WRITTEN_SECONDS):
        files = len(shadows(rollout, since.at_ms))  # of the champion's there is no end
        if files != before:
            changed, before = time.monotonic(), files
        time.sleep(0.2)


def _pairs(rollout: Rollout, since: _Since) -> Pairs:
    """Of the time in which requests were mirrored, as the capture service's own clock has it."""
    candidate, times = _answers(rollout, shadows(rollout, since.at_ms), since)
    champion, asked = _answers(rollout, served(rollout, since.at_ms), since)
    if times:
        first, last = min(times.values()), max(times.values())
        champion = {one: answers for one, answers in champion.items() if first <= asked[one] <= last}
    classes = len(rollout.project.task.classes)
    return pair(champion, candidate, classes=classes, refused=_refused(rollout) - since.refused)


def _answers(rollout: Rollout, captures: list[Capture], since: _Since) -> tuple[Answers, dict[str, datetime]]:
    """Request id -> answers [n,K], and when it was asked. Ids of several requests are left out: which is which?"""
    answers: dict[str, list[Any]] = defaultdict(list)
    times: dict[str, datetime] = {}
    repeated: set[str] = set()
    for capture in captures:
        if capture.key not in since.rows:  # what is written stays as it is
            since.rows[capture.key] = read_rows(rollout, capture, COLUMNS).to_pylist()
        for row in since.rows[capture.key]:
            answers[row["request_id"]].append(row["probabilities"])
            if times.setdefault(row["request_id"], row["at"]) != row["at"]:
                repeated.add(row["request_id"])
    classes = len(rollout.project.task.classes)
    whole = {one for one, found in answers.items() if all(len(answer) == classes for answer in found)}
    return {one: np.array(answers[one], np.float32) for one in whole - repeated}, times


def _refused(rollout: Rollout) -> int:
    """Mirrored requests that the candidate answered with an error, since the capture service started."""
    text = scrape_capture(rollout.stores.settings)
    labels = {"model": rollout.project.name, "lane": SHADOW, "outcome": "refused"}
    return int(summed(read(text), "visionloop_capture_requests", **labels))
