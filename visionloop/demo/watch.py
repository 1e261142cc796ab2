"""Waiting for the loop as a person does: by looking at records and DAG runs, with a line for each change of a task."""

import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.status import Status

from visionloop.errors import StageError
from visionloop.stores.airflow import Airflow

T = TypeVar("T")
POLL_SECONDS = 1.0
DAGS = ("data", "train", "release", "monitor")


class Watch:
    """Shows what the project's DAGs do, and ends the demo as soon as one of their runs has failed."""

    def __init__(self, airflow: Airflow, project: str, console: Console) -> None:
        self._airflow, self._project, self._console = airflow, project, console
        self._seen: dict[tuple[str, str, str], str] = {}

    def until(self, what: str, found: Callable[[], T | None], *, limit_seconds: float) -> T:
        """Return the first answer of `found` that is not None. Raises StageError after the limit or a failed run."""
        began = time.monotonic()
        with self._console.status(what) as status:
            while (answer := found()) is None:
                waited = time.monotonic() - began
                if waited > limit_seconds:
                    raise StageError(f"waited {waited:.0f} s for this: {what}. `visionloop status` says what runs")
                self._look(status, f"{what} ({waited:.0f} s)")
                time.sleep(POLL_SECONDS)
        return answer

    def _look(self, status: Status, what: str) -> None:
        running = []
        for dag in (f"{self._project}__{name}" for name in DAGS):
            for run in self._airflow.dag_runs(dag, limit=2):
                if run.state == "queued" or (run.state == "success" and not self._known(dag, run.run_id)):
                    continue
                running += self._tasks(dag, run.run_id)
                if run.state == "failed":
                    raise StageError(f"{dag} run {run.run_id} failed: {self._airflow.run_link(dag, run.run_id)}")
        status.update(f"{what} {' '.join(running)}")

    def _known(self, dag: str, run: str) -> bool:
        return any(key[:2] == (dag, run) and state == "running" for key, state in self._seen.items())

    def _tasks(self, dag: str, run: str) -> list[str]:
        tasks = self._airflow.task_states(dag, run)
        for task, state in tasks.items():
            before = self._seen.get((dag, run, task))
            self._seen[dag, run, task] = state or ""
            if before and before != state and state in {"success", "failed", "up_for_retry"}:
                self._console.print(f"  [dim]{dag}[/] {task} [{'green' if state == 'success' else 'red'}]{state}[/]")
        return [f"[cyan]{dag}.{task}[/]" for task, state in tasks.items() if state in {"running", "deferred"}]
