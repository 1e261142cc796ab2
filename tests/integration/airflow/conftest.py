"""A stack of these tests' own, because they kill its parts, and what a user does with it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from tests.integration.conftest import running_stack
from visionloop import stack
from visionloop.demo import fashion
from visionloop.project import Project, load_project, project_file
from visionloop.settings import Settings
from visionloop.stages import deliver
from visionloop.stores import Stores, connect
from visionloop.stores.airflow import Airflow, DagRun, open_airflow

T = TypeVar("T")
SERVICES = ("s3", "ray", "mlflow", "airflow")
ENDED = {"success", "failed"}
PROJECT = "fashion"
IMAGES = 3_000


class Loop:
    """The running stack, its project, and the questions that the tests ask."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stores: Stores = connect(settings)
        self.airflow: Airflow = open_airflow(settings)
        token = Path(settings.need("ray_token")).read_text().strip()
        self._ray = httpx.Client(base_url=settings.need("ray_url"), headers={"Authorization": f"Bearer {token}"})

    @property
    def project(self) -> Project:
        """As the file is now."""
        return load_project(project_file(self.settings.projects, PROJECT))

    def change_project(self, **sections: dict[str, Any]) -> None:
        """Write other values into sections of the project file."""
        path = project_file(self.settings.projects, PROJECT)
        content = yaml.safe_load(path.read_text())
        for name, values in sections.items():
            content[name] = {**content.get(name, {}), **values}
        path.write_text(yaml.safe_dump(content))

    def deliver(self, batch: str, start: int, stop: int) -> None:
        """Real images, as a user delivers them."""
        folder = fashion.write_idx(
            self.settings.home / "deliveries" / batch,
            *fashion.clean("train", start, stop),
            metadata={"camera": "belt-1"},
        )
        deliver.run(self.project, deliver.Inputs(folder=folder, batch=batch), self.stores)

    def until(self, what: str, found: Callable[[], T | None], seconds: float = 180.0) -> T:
        """The first answer that is neither None nor empty nor False."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = found()
            if answer:
                return answer
            time.sleep(0.5)
        raise AssertionError(f"{what}: not within {seconds:.0f} s. Import errors: {self.airflow.import_errors()}")

    def run(self, dag: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run by hand; the DAG is let go first."""
        self.until(f"Airflow reads {dag}", lambda: self.airflow.unpause(dag), 90)
        return self.airflow.trigger(dag, conf)

    def ended(self, dag: str, run_id: str, seconds: float = 300.0) -> str:
        """The state in which a run ends."""

        def state() -> str | None:
            return next((run.state for run in self.runs(dag) if run.run_id == run_id and run.state in ENDED), None)

        return self.until(f"{dag} {run_id} ends: {self.airflow.task_states(dag, run_id)}", state, seconds)

    def runs(self, dag: str) -> list[DagRun]:
        """The newest runs."""
        return self.airflow.dag_runs(dag, limit=20)

    def task(self, dag: str, run_id: str, task: str, *states: str, seconds: float = 120.0) -> str:
        """Wait until a task is in one of these states."""

        def state() -> str | None:
            found = self.airflow.task_states(dag, run_id).get(task)
            return found if found in states else None

        return self.until(f"{task} of {dag} becomes {' or '.join(states)}", state, seconds)

    def jobs(self, prefix: str) -> dict[str, str]:
        """Ray's submitted jobs whose name begins so, and their status."""
        found = self._ray.get("/api/jobs/").raise_for_status().json()
        named = {job["submission_id"]: job["status"] for job in found if job["submission_id"]}
        return {name: status for name, status in named.items() if name.startswith(prefix)}

    def job_log(self, name: str) -> str:
        """What a job has printed."""
        return str(self._ray.get(f"/api/jobs/{name}/logs").raise_for_status().json()["logs"])

    def kill(self, service: str) -> None:
        """kill -9 of a service and its children; the supervisor starts it again."""
        state = json.loads((self.settings.home / "stack" / "state.json").read_text())
        os.killpg(os.getpgid(state["services"][service]["leader"]["pid"]), signal.SIGKILL)

    def healthy(self, service: str) -> None:
        """Wait until the supervisor has it running again."""

        def well() -> bool:
            return any(
                found.name == service and found.state == "running" for found in stack.status(self.settings).services
            )

        self.until(f"{service} runs", well, 90)

    def write_dag(self, name: str, text: str) -> None:
        """A DAG file of the tests beside the stubs."""
        (self.settings.home / "airflow" / "dags" / f"{name}.py").write_text(text)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """Object store, Ray, MLflow and Airflow; a project whose gate lets a quickly trained model pass."""
    with running_stack(list(SERVICES)) as settings:
        running = Loop(settings)
        running.change_project(
            training={"epochs": 1},
            schedule={"data": None, "monitor": None, "retry_delay_seconds": 1},
            suite={"scenarios": [{"name": "overall", "at_least": 0.2, "severity": "critical"}]},
        )
        yield running
