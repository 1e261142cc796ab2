"""Runs a command as a Ray job and waits for it in the triggerer: one job per try, whatever dies in between."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from airflow.sdk import BaseOperator, BaseOperatorLink, Context
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR
from airflow.sdk.exceptions import AirflowException

from visionloop.errors import VisionLoopError
from visionloop_airflow.ray_api import ENDED, RayJobs, Unreachable, open_jobs
from visionloop_airflow.submission import Submission, metadata, submission
from visionloop_airflow.trigger import RayJobTrigger

POLL_SECONDS = 0.7
UNREACHABLE_SECONDS = 120.0
STOP_SECONDS = 30.0
LAST_LINES = 20
LINK_KEY = "ray_job_link"
T = TypeVar("T")


class RayJobLink(BaseOperatorLink):
    """The button `Ray job` of a task."""

    name = "Ray job"

    @property
    def xcom_key(self) -> str:
        """Where Airflow's UI finds the address."""
        return LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Asked in the worker whenever a part of the task ends; the answer overwrites the XCom, so it must last."""
        return operator.link or ti_key.xcom_pull(key=LINK_KEY, map_indexes=ti_key.map_index) or ""


class RayJobOperator(BaseOperator):
    """Submits `entrypoint` under a name that is the same for the same try, and finds a job that is there already.

    :param entrypoint: shell command that the cluster runs.
    :param num_cpus: CPUs that Ray reserves for the command itself.
    :param timeout_seconds: the job is stopped and the task fails after this long; None: never.
    :param unreachable_seconds: how long Ray may be out of reach before the task fails.
    """

    template_fields = ("entrypoint",)
    operator_extra_links = (RayJobLink(),)
    ui_color = "#d6e4f0"

    def __init__(
        self,
        *,
        entrypoint: str = "",
        num_cpus: float = 0.0,
        timeout_seconds: float | None = None,
        poll_seconds: float = POLL_SECONDS,
        unreachable_seconds: float = UNREACHABLE_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.num_cpus = num_cpus
        self.timeout_seconds = timeout_seconds
        self.poll_seconds = poll_seconds
        self.unreachable_seconds = unreachable_seconds
        self.submission_id: str | None = None
        self.link: str | None = None

    def command(self, submission_id: str) -> str:
        """The shell command of a job; subclasses build it here, at execution."""
        return self.entrypoint

    def finish(self, context: Context, submission_id: str) -> Any:
        """What the task returns after the job has succeeded."""
        return submission_id

    def execute(self, context: Context) -> Any:
        """Place the job, or find it, and wait; a job that has succeeded already is just taken."""
        try:
            succeeded = asyncio.run(self._place(context))
        except VisionLoopError as error:
            raise AirflowException(f"{error}. {self._hint()}") from None
        assert self.submission_id
        if succeeded:
            return self.finish(context, self.submission_id)
        return self._wait(self.submission_id)

    def execute_complete(self, context: Context, event: dict[str, Any], submission_id: str) -> Any:
        """Called when the trigger has fired: print what is left of the log, then succeed or fail."""
        self.submission_id = submission_id
        status, message = event["status"], event["message"]
        log = (self._try_to(lambda jobs: jobs.log(submission_id)) or "") if status in ENDED else ""
        for line in log[event["shown"] :].splitlines():
            self.log.info("%s", line)
        if status == "SUCCEEDED":
            self.log.info("the Ray job %s succeeded", submission_id)
            return self.finish(context, submission_id)
        if status == "FAILED":
            said = message.partition(", last available logs")[0]
            end = "\n".join(log.splitlines()[-LAST_LINES:]) or "(its log cannot be read)"
            raise AirflowException(f"the Ray job {submission_id} failed: {said}\n{end}")
        if status == "STOPPED":
            raise AirflowException(
                f"the Ray job {submission_id} was stopped outside Airflow: to end a task, mark it failed in Airflow"
            )
        if status == "LOST":
            raise AirflowException(f"{message}: its head was started anew, or somebody deleted the job")
        raise AirflowException(f"{message}. {self._hint()}")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Airflow fails a deferred task (its time is over, its trigger broke) without `on_kill`: end the job here."""
        if next_method == TRIGGER_FAIL_REPR:
            names = submission(context["ti"], self.retries or 0)
            self._try_to(lambda jobs: _stop_all(jobs, lambda name: name.startswith(names.prefix)))
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """The worker's process is being ended by a user before the job could be handed to the triggerer."""
        if self.submission_id:
            wanted = self.submission_id
            self._try_to(lambda jobs: jobs.stop(wanted))

    async def _place(self, context: Context) -> bool:
        """Make sure that the job of this try exists; True when it has succeeded already."""
        ti = context["ti"]
        names = submission(ti, self.retries or 0)
        async with open_jobs() as jobs:
            if names.clear:
                await self._patiently(lambda: _stop_all(jobs, names.outdated, wait_seconds=STOP_SECONDS))
            return await self._patiently(lambda: self._find_or_submit(jobs, names, context))

    async def _find_or_submit(self, jobs: RayJobs, names: Submission, context: Context) -> bool:
        for attempt in itertools.count(1):
            name = names.id(attempt)
            job = await jobs.job(name)
            if job and job.status in {"FAILED", "STOPPED"}:
                continue
            self.submission_id = name
            if job is None:
                new = await jobs.submit(name, self.command(name), metadata(context["ti"]), self.num_cpus)
                self.log.info("%s the Ray job %s: %s", "submitted" if new else "found", name, jobs.link(name))
            else:
                self.log.info("found the Ray job %s, %s: %s", name, job.status.lower(), jobs.link(name))
            self.link = jobs.link(name)
            return bool(job and job.status == "SUCCEEDED")
        raise AssertionError("itertools.count ends")

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again while Ray is out of reach, for a bounded time. Every question here may be asked twice."""
        until = time.monotonic() + self.unreachable_seconds
        while True:
            try:
                return await ask()
            except Unreachable as error:
                if time.monotonic() > until:
                    raise Unreachable(f"{error} for {self.unreachable_seconds:.0f} s") from None
                self.log.warning("%s; trying again", error)
                await asyncio.sleep(max(self.poll_seconds, 1.0))

    def _wait(self, submission_id: str) -> NoReturn:
        self.defer(
            trigger=RayJobTrigger(submission_id, self.poll_seconds, self.unreachable_seconds),
            method_name="execute_complete",
            kwargs={"submission_id": submission_id},
            timeout=timedelta(seconds=self.timeout_seconds) if self.timeout_seconds else None,
        )

    def _try_to(self, ask: Callable[[RayJobs], Awaitable[T]]) -> T | None:
        """Ask Ray once; a failure is logged, because something else is failing already.

        In a thread, since `on_kill` comes as a signal and may find an event loop running in this one.
        """

        async def once() -> T:
            async with open_jobs() as jobs:
                return await ask(jobs)

        with ThreadPoolExecutor(1) as thread:
            try:
                return thread.submit(asyncio.run, once()).result()
            except VisionLoopError as error:
                self.log.error("%s", error)
                return None

    def _hint(self) -> str:
        return "Is Ray running? `visionloop status` shows, `visionloop logs ray` has its log"


async def _stop_all(jobs: RayJobs, wanted: Callable[[str], bool], *, wait_seconds: float = 0.0) -> None:
    """Stop the jobs with these names, and wait until they have ended."""
    until = time.monotonic() + wait_seconds
    running = [job.submission_id for job in await jobs.jobs() if not job.ended and wanted(job.submission_id)]
    for name in running:
        await jobs.stop(name)
    while running and time.monotonic() < until:
        found = [await jobs.job(name) for name in running]
        running = [job.submission_id for job in found if job and not job.ended]
        await asyncio.sleep(0.5 if running else 0.0)
