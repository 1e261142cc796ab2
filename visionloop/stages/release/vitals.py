"""The canary's server while a release goes on: its memory is read, and why it does not answer is asked."""

import logging
import time

from visionloop.errors import StageError, StoreError
from visionloop.records import MemoryReading
from visionloop.serving.memory import ill, keep
from visionloop.stages.release.rollout import Rollout
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
LEFT_ALONE = 20
"""A frozen server makes each question wait: one that did not tell is left alone for so many times as long."""


class Vitals:
    """Readings since the candidate was loaded, some of them perhaps by a process before this one."""

    def __init__(self, rollout: Rollout, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._lane, self._version = rollout.stores.canary, rollout.candidate.version
        self._name, self._policy = rollout.project.name, rollout.project.release
        self.readings: list[MemoryReading] = list(rollout.state().memory)
        self.fault: str | None = None
        self._not_before = 0.0

    def begin(self) -> None:
        """Read the lane before the candidate is loaded. Raises StageError where its memory cannot be read."""
        try:
            self.readings = [self._ask()]
        except ModelRefused as error:
            reason = f"the canary lane's memory cannot be read, which takes Triton's python backend: {error}"
            raise StageError(reason) from error

    def look(self) -> str | None:
        """Read once more; says why the release must end. A lane that does not tell at this moment is no evidence."""
        if time.monotonic() >= self._not_before:
            self._read()
        self.fault = ill(self.readings, self._policy)
        return self.fault

    def why_silent(self, error: StoreError | ModelRefused, *, answered: bool) -> str | None:
        """Why a request failed that the candidate should have answered; None where that is no verdict about it.

        `answered`: it has answered others just before, so that a server which is down ended meanwhile.
        """
        found = self.look()
        if found or not answered or self._lane.ready():
            return found
        return f"the canary's server died while the candidate answered: {error}"

    def _read(self) -> None:
        began = time.monotonic()
        try:
            self.readings = keep(self.readings, self._ask())
        except (StoreError, ModelRefused) as error:
            now = time.monotonic()
            self._not_before = now + LEFT_ALONE * (now - began)
            log.warning("the canary lane's memory was not read: %s", error)

    def _ask(self) -> MemoryReading:
        return self._lane.memory(self._name, version=self._version, deadline_seconds=self._patience_seconds)
