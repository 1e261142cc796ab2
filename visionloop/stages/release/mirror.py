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
from visionloop.stages.release.captures import CLOCKS_MS, read_rows, served, shadows
from visionloop.stages.release.rollout import Rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores.scrapes import scrape_capture

COLUMNS = ("request_id", "at", "probabilities")
LOOK_SECONDS = 1.0
QUIET_SECONDS = 5.0
"""So long without a request: nobody sends any at this time."""
WRITTEN_SECONDS, LONGEST_SECONDS = 3.0, 15.0
"""When the capture service, which writes every two seconds, has written nothing for so long, it has written all."""

Answers = dict[str, Matrix]
Pairs = tuple[Matrix, Matrix, int]
"""The champion's answers [N,K], the candidate's, and how many images the candidate failed."""


def mirror(rollout: Rollout, vitals: Vitals, *, classes: int) -> tuple[Pairs, str | None]:
    """Mirror until there are enough, the time is over, or nobody asks; and why the candidate must go no further.

    `classes`: as many as the candidate answers; a champion's answers of another length are none to compare with.
    """
    project, stores = rollout.project, rollout.stores
    nothing = np.empty((0, classes), np.float32)
    if not (project.release.shadow_seconds and project.monitoring.capture_percent and stores.settings.capture_url):
        return (nothing, nothing, 0), None
    since = _Since(time.time() * 1000 - CLOCKS_MS, classes, _Refused(rollout))
    rollout.route(canary=0, mirrored=True)
    try:
        fault = _wait(rollout, vitals, since)
    finally:
        with suppress(Conflict):  # who ended it has set weights of its own
            rollout.route(canary=0)
    if not shadows(rollout, since.at_ms) and not since.refused.count():
        return (nothing, nothing, 0), fault
    if fault is None:
        _await_written(rollout, since)
    return _pairs(rollout, since), fault


class _Refused:
    """Mirrored requests that the candidate answered with an error since this began, as the capture service counts.

    Where it does not say, none is held against anybody: neither those before its first word nor those it forgot.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._settings = rollout.stores.settings
        self._labels = {"model": rollout.project.name, "lane": SHADOW, "outcome": "refused"}
        self._seen = 0
        self._last = self._asked()

    def count(self) -> int:
        """So many until now; asked often, it misses little of what a service that ends forgets."""
        now = self._asked()
        if now is not None and self._last is not None:
            self._seen += now - self._last if now >= self._last else now  # it was started anew
        self._last = self._last if now is None else now
        return self._seen

    def _asked(self) -> int | None:
        text = scrape_capture(self._settings)
        return None if text is None else int(summed(read(text), "visionloop_capture_requests", **self._labels))


@dataclass(frozen=True)
class _Since:
    """When the mirroring began, and what was found since."""

    at_ms: float
    classes: int
    refused: _Refused
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
        since.refused.count()
        if len(found) != files and not fault:
            files, (champion, candidate, failed) = len(found), _pairs(rollout, since)
            seen = hold_together(champion, candidate, failed=failed, mirrored=len(candidate) + failed)
            rollout.advance(shadow=seen)
            fault = judge(seen, project.release)
        images = sum(capture.rows for capture in found)
        if not fault and not stores.canary.ready():
            error = StoreError("the canary lane is down")
            fault = vitals.why_silent(error, answered=images > 0)
            if fault is None:
                raise error
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
    return pair(champion, candidate, classes=since.classes, refused=since.refused.count())


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
    whole = {one for one, found in answers.items() if all(len(answer) == since.classes for answer in found)}
    return {one: np.array(answers[one], np.float32) for one in whole - repeated}, times
