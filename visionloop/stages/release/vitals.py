"""The canary's server while a release goes on: its memory is read, and why it does not answer is asked.

Other projects' candidates may be in the same lane: one whose process dies takes the server along, since the lane is
started anew then. That is no evidence about this candidate. The step ends without a verdict, and what it saw meanwhile
counts for nothing; tried again, it goes on with the candidate that the new server has loaded.
"""

import logging
import time

from visionloop.errors import StageError, StoreError
from visionloop.records import MemoryReading
from visionloop.serving.memory import ill, is_blameless, keep, with_others
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
        self._has_seen = False
        """Is there evidence of this process, which a server that ends meanwhile would spoil?"""

    def begin(self) -> None:
        """Read the lane before the candidate is loaded. Raises StageError where its memory cannot be read."""
        try:
            self.readings, self._has_seen = [self._ask()], True
        except ModelRefused as error:
            reason = f"the canary lane's memory cannot be read, which takes Triton's python backend: {error}"
            raise StageError(reason) from error

    def look(self) -> str | None:
        """Read once more; says why the release must end. A lane that does not tell at this moment is no evidence.

        Raises StoreError when the server ended, or is away, for what may be another model's fault.
        """
        if time.monotonic() >= self._not_before:
            self._read()
        self.fault = ill(self.readings, self._policy)
        return self.fault

    def why_silent(self, error: StoreError | ModelRefused, *, answered: bool) -> str | None:
        """Why a request failed that the candidate should have answered; None where that is no verdict about it.

        `answered`: it has answered others just before, so that a server which is down ended meanwhile.
        """
        found = self.look()
        if found or not answered or self._lane.ready() or self._others():
            return found
        return f"the canary's server died while the candidate answered: {error}"

    def _read(self) -> None:
        began = time.monotonic()
        try:
            new = self._ask()
        except (StoreError, ModelRefused) as error:
            now = time.monotonic()
            self._not_before = now + LEFT_ALONE * (now - began)
            log.warning("the canary lane's memory was not read: %s", error)
            if self._others() and not self._lane.ready(deadline_seconds=PATIENCE_SECONDS):
                raise StoreError(self._no_verdict("is away")) from error
            return
        if len(self.readings) > 1 and is_blameless(self.readings[-1], new):
            self._begin_anew(new)
        else:
            self.readings = keep(self.readings, with_others(self.readings, new))
        self._has_seen = True

    def _begin_anew(self, new: MemoryReading) -> None:
        """Go on with the new server's readings, unless there is evidence from before; raises StoreError then."""
        if self._has_seen:
            raise StoreError(self._no_verdict("was started anew"))
        if self._lane.served(self._name) != self._version:
            raise StoreError(f"{self._no_verdict('was started anew')}; it is not loaded again, which preflight does")
        log.info("%s", self._no_verdict("was started anew"))
        self.readings = [self.readings[0], new]

    def _others(self) -> int:
        """Other projects' models that were seen in the lane."""
        return self.readings[-1].others if self.readings else 0

    def _no_verdict(self, what: str) -> str:
        return (
            f"the canary lane's server {what}, and other projects' models were in it: "
            f"no verdict about version {self._version} of {self._name}, try again"
        )

    def _ask(self) -> MemoryReading:
        return self._lane.memory(self._name, version=self._version, deadline_seconds=self._patience_seconds)
