"""How sure both lanes are of what clients ask them while a canary runs, from what is captured of it."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from visionloop.errors import DataError
from visionloop.monitoring.windows import Capture
from visionloop.records import LiveAnswers
from visionloop.serving.rollout import UNSURE
from visionloop.stages.release.captures import answered, read_rows, served
from visionloop.stages.release.rollout import Rollout

log = logging.getLogger(__name__)

COLUMNS = ("probabilities",)


@dataclass
class Live:
    """Counts over all that was captured since the canary began; each file is read once."""

    rollout: Rollout
    since: datetime
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key of a file -> images, and those of them that were unsure."""

    def look(self) -> LiveAnswers:
        """As it is now: another process that goes on with the release comes to the same counts."""
        since_ms = self.since.timestamp() * 1000
        canary, canary_unsure = self._sum(answered(self.rollout, "canary", since_ms))
        stable, stable_unsure = self._sum(served(self.rollout, since_ms))
        return LiveAnswers(
            since=self.since,
            canary=canary,
            canary_unsure=canary_unsure,
            stable=stable,
            stable_unsure=stable_unsure,
        )

    def _sum(self, captures: list[Capture]) -> tuple[int, int]:
        for capture in captures:
            if capture.key not in self.counts:
                self.counts[capture.key] = self._count(capture)
        found = [self.counts[capture.key] for capture in captures]
        return sum(images for images, _ in found), sum(unsure for _, unsure in found)

    def _count(self, capture: Capture) -> tuple[int, int]:
        try:
            rows = read_rows(self.rollout, capture, COLUMNS)["probabilities"].to_pylist()
        except DataError as error:
            log.warning("%s: it says nothing about the canary", error)
            return 0, 0
        most = np.array([max(row) for row in rows if row], np.float64)
        return len(most), int((~(most >= UNSURE)).sum())  # of NaN nothing is sure


def begin(rollout: Rollout) -> LiveAnswers | None:
    """From now on; None where nothing serves beside the canary, or nothing is captured."""
    if not rollout.project.monitoring.capture_percent or rollout.champion is None:
        return None
    return LiveAnswers(since=datetime.now(UTC))
