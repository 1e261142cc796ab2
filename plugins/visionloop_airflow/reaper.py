"""Ends Ray jobs whose task has ended without them.

A user's kill reaches a job through the triggerer. When that is down at this moment nobody is told, so the DAGs that run
on a schedule look for such jobs now and then.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from visionloop.errors import VisionLoopError
from visionloop_airflow.ray_api import Job, open_jobs

log = logging.getLogger(__name__)

ENDED_TASK = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""A task in another state will find its job by name."""


def reap(project: str) -> list[str]:
    """Stop the orphans of a project's DAGs; returns their names. Ray out of reach: nothing now, the next look will."""
    try:
        return asyncio.run(_reap(project))
    except VisionLoopError as error:
        log.warning("no look for orphaned Ray jobs this time: %s", error)
        return []


def orphans(jobs: list[Job], project: str, state_of: Callable[[dict[str, str]], str | None]) -> list[Job]:
    """Jobs that run for a task of this project that has ended; `state_of` gives a task's state by a job's metadata."""
    ours = [job for job in jobs if job.metadata.get("airflow_dag", "").startswith(f"{project}__")]
    return [job for job in ours if not job.ended and state_of(job.metadata) in ENDED_TASK]


async def _reap(project: str) -> list[str]:
    async with open_jobs() as ray:
        found = orphans(await ray.jobs(), project, _state)
        for job in found:
            log.warning("stopping the orphaned Ray job %s: its task has ended without it", job.submission_id)
            await ray.stop(job.submission_id)
    return [job.submission_id for job in found]


def _state(metadata: dict[str, str]) -> str | None:
    """Ask Airflow, through the running task, for another task's state."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    run, task, index = metadata["airflow_run"], metadata["airflow_task"], int(metadata["airflow_map_index"])
    states: dict[str, Any] = RuntimeTaskInstance.get_task_states(
        dag_id=metadata["airflow_dag"], task_ids=[task], run_ids=[run], map_index=None if index < 0 else index
    )
    found = states.get(run, {})
    return found.get(task) if index < 0 else found.get(f"{task}_{index}", found.get(task))
