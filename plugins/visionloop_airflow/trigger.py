"""Waits in the triggerer for one Ray job, with the job's log streamed into the task's log meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from visionloop.errors import VisionLoopError
from visionloop_airflow.ray_api import Job, RayJobs, Unreachable, open_jobs

LOG_BYTES_PER_POLL = 256_000
"""The API gives the whole log each time, so a log of n times this size is read at every n-th poll only."""
STOP_SECONDS = 25.0
"""How long a user's kill tries to reach Ray; Airflow waits 30 s for it. The reaper ends what is left."""


class RayJobTrigger(BaseTrigger):
    """Yields one event, `{"status", "message", "shown"}`.

    `status` is Ray's (SUCCEEDED, FAILED, STOPPED), or LOST when Ray forgot the job, UNREACHABLE when it was silent for
    too long, REFUSED when it does not let us look. `shown` is how many characters of the log were streamed: the task
    prints the rest, because the triggerer drops lines that are written just before an event.

    The address and the token are read here, when it runs: a stack that was restarted meanwhile has others. A triggerer
    that was restarted streams the log from its beginning.
    """

    def __init__(self, submission_id: str, poll_seconds: float, unreachable_seconds: float) -> None:
        super().__init__()
        self.submission_id = submission_id
        self.poll_seconds = poll_seconds
        self.unreachable_seconds = unreachable_seconds
        self._shown = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes this trigger again in another process."""
        return "visionloop_airflow.trigger.RayJobTrigger", {
            "submission_id": self.submission_id,
            "poll_seconds": self.poll_seconds,
            "unreachable_seconds": self.unreachable_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until the job has ended, or until Ray has been out of reach for too long."""
        answered, silent, polls = time.monotonic(), False, 0
        while True:
            try:
                async with open_jobs() as jobs:
                    while True:
                        job = await jobs.job(self.submission_id)
                        if job is None:
                            yield self._event(
                                "LOST", f"Ray at {jobs.address} does not know the job {self.submission_id}"
                            )
                            return
                        await self._stream_log(jobs, job, polls)
                        if silent:
                            self.log.info("Ray at %s answers again", jobs.address)
                        answered, silent, polls = time.monotonic(), False, polls + 1
                        if job.ended:
                            yield self._event(job.status, job.message)
                            return
                        await asyncio.sleep(self.poll_seconds)
            except Unreachable as error:
                if time.monotonic() - answered > self.unreachable_seconds:
                    yield self._event("UNREACHABLE", f"{error} for {self.unreachable_seconds:.0f} s")
                    return
                if not silent:
                    self.log.warning("%s; waiting up to %.0f s for it", error, self.unreachable_seconds)
                silent = True
                await asyncio.sleep(self.poll_seconds)
            except VisionLoopError as error:
                yield self._event("REFUSED", str(error))
                return

    async def on_kill(self) -> None:
        """A user cleared the task or marked it: end the job."""
        until = time.monotonic() + STOP_SECONDS
        while True:
            try:
                async with open_jobs() as jobs:
                    await jobs.stop(self.submission_id)
                self.log.info("stopped the Ray job %s, since its task was cleared or marked", self.submission_id)
                return
            except Unreachable as error:
                if time.monotonic() > until:
                    self.log.error("could not stop the Ray job %s: %s; the reaper will", self.submission_id, error)
                    return
                await asyncio.sleep(self.poll_seconds)

    async def _stream_log(self, jobs: RayJobs, job: Job, polls: int) -> None:
        """Write the whole lines that are new."""
        if job.status != "RUNNING" or polls % (1 + self._shown // LOG_BYTES_PER_POLL):
            return
        text = await jobs.log(self.submission_id)
        end = text.rfind("\n") + 1
        for line in text[self._shown : end].splitlines():
            self.log.info("%s", line)
        self._shown = max(self._shown, end)

    def _event(self, status: str, message: str) -> TriggerEvent:
        return TriggerEvent({"status": status, "message": message, "shown": self._shown})
