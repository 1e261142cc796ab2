"""What a task's Ray job is called: the same name for the same try, so that nobody ever starts a second job for it.

`<dag>-<task>[-m<map index>]-<sha1 of the run>-c<clear>-a<attempt>`. Airflow's try number is no part of it: a try that
ends because its scheduler or worker died leaves a job that the next try must find. `max_tries - retries` grows exactly
when a user clears the task; the attempt grows when a job of this name has failed.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

RUN_DIGITS = 12


class TaskInstance(Protocol):
    """What a name is made from."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int | None
    max_tries: int


@dataclass(frozen=True)
class Submission:
    """The names of one task instance's jobs."""

    task: str
    """Common to all jobs of this task in this run."""
    clear: int

    def id(self, attempt: int) -> str:
        """Name of the job of this attempt, counted from 1."""
        return f"{self.prefix}a{attempt}"

    @property
    def prefix(self) -> str:
        """Common to the jobs since the task was cleared last."""
        return f"{self.task}-c{self.clear}-"

    def outdated(self, submission_id: str) -> bool:
        """Is this a job of the same task from before it was cleared?"""
        return submission_id.startswith(f"{self.task}-c") and not submission_id.startswith(self.prefix)


def submission(ti: TaskInstance, retries: int) -> Submission:
    """The names for a task instance whose operator has this many retries."""
    run = hashlib.sha1(ti.run_id.encode(), usedforsecurity=False).hexdigest()[:RUN_DIGITS]
    mapped = f"-m{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    return Submission(f"{ti.dag_id}-{ti.task_id}{mapped}-{run}", max(0, ti.max_tries - retries))


def metadata(ti: TaskInstance) -> dict[str, str]:
    """What the job carries so that its task can be found again (Ray takes strings only)."""
    index = -1 if ti.map_index is None else ti.map_index
    return {
        "airflow_dag": ti.dag_id,
        "airflow_run": ti.run_id,
        "airflow_task": ti.task_id,
        "airflow_map_index": str(index),
    }
