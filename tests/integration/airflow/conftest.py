"""A stack of these tests' own, because they kill its parts, and what a user does with it."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import pytest
import yaml

from tests.integration.conftest import running_stack
from visionloop.demo import fashion
from visionloop.project import Project, load_project, project_file
from visionloop.records import Snapshot
from visionloop.settings import Settings
from visionloop.stack.status import Kept, read_state
from visionloop.stages import deliver
from visionloop.stores import Stores, connect
from visionloop.stores.airflow import Airflow, DagRun, open_airflow

T = TypeVar("T")
SERVICES = ("s3", "ray", "mlflow", "airflow")
ENDED = {"success", "failed"}
PROJECT = "fashion"
DATA, DAG = f"{PROJECT}__data", f"{PROJECT}__train"
IMAGES = 3_000


class Loop:
    """The running stack, its project, and the questions that the tests ask."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stores: Stores = connect(settings)
        self.airflow: Airflow = open_airflow(settings)
        self.data_run = ""
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

    @contextmanager
    def changed_project(self, **sections: dict[str, Any]) -> Iterator[None]:
        """`change_project` for a while."""
        path = project_file(self.settings.projects, PROJECT)
        before = path.read_text()
        self.change_project(**sections)
        try:
            yield
        finally:
            path.write_text(before)

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

    def knows(self, dag: str) -> bool:
        """Has Airflow read this DAG? It stays paused."""
        headers = {"Authorization": f"Bearer {self.airflow.login('viewer')}"}
        answer = httpx.get(f"{self.airflow.url}/api/v2/dags/{dag}", headers=headers, timeout=30)
        return answer.is_success and not answer.json()["is_stale"]

    def job_names(self, dag: str, task: str, run: str) -> dict[str, str]:
        """The jobs of a task in a run, and their status."""
        return self.jobs(f"{dag}-{task}-{hashlib.sha1(run.encode()).hexdigest()[:12]}-")

    def jobs(self, prefix: str) -> dict[str, str]:
        """Ray's submitted jobs whose name begins so, and their status."""
        found = self._ray.get("/api/jobs/").raise_for_status().json()
        named = {job["submission_id"]: job["status"] for job in found if job["submission_id"]}
        return {name: status for name, status in named.items() if name.startswith(prefix)}

    def job_log(self, name: str) -> str:
        """What a job has printed."""
        return str(self._ray.get(f"/api/jobs/{name}/logs").raise_for_status().json()["logs"])

    def task_log(self, dag: str, run: str, task: str) -> str:
        """All tries of a task, the triggerer's part too, as JSON lines."""
        folder = self.settings.home / "airflow" / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task}"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log*")))

    def password(self, user: str) -> str:
        """As the file of users has it."""
        return str(json.loads(Path(self.settings.need("airflow_users")).read_text())[user])

    def job_link(self, dag: str, run: str, task: str) -> str | None:
        """What the button `Ray job` of a task leads to."""
        path = f"/api/v2/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/links"
        headers = {"Authorization": f"Bearer {self.airflow.login('viewer')}"}
        found = httpx.get(self.airflow.url + path, headers=headers).raise_for_status().json()
        link: str | None = found["extra_links"]["Ray job"]
        return link

    def mlflow_runs(self) -> list[str]:
        """The ids of the project's runs."""
        api = f"{self.settings.need('mlflow_url')}/api/2.0/mlflow"
        experiment = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": PROJECT}).raise_for_status()
        wanted = {"experiment_ids": [experiment.json()["experiment"]["experiment_id"]]}
        found = httpx.post(f"{api}/runs/search", json=wanted).raise_for_status().json()
        return [run["info"]["run_id"] for run in found.get("runs", [])]

    def kill(self, service: str) -> None:
        """kill -9 of a service and its children; the supervisor starts it again."""
        leader = self._entry(service).leader
        assert leader is not None
        os.killpg(os.getpgid(leader.pid), signal.SIGKILL)

    def started(self, service: str) -> datetime | None:
        """When it was started last."""
        return self._entry(service).started

    def restarted(self, service: str, before: datetime | None) -> None:
        """Wait until the supervisor has it running again after a death."""

        def well() -> bool:
            entry = self._entry(service)
            return entry.started != before and entry.state == "running"

        self.until(f"{service} runs again", well, 90)

    def _entry(self, service: str) -> Kept:
        state = read_state(self.settings.home)
        assert state is not None
        return state.services[service]

    def write_dag(self, name: str, text: str) -> None:
        """A DAG file of the tests beside the stubs."""
        (self.settings.home / "airflow" / "dags" / f"{name}.py").write_text(text)


@pytest.fixture(scope="package")
def loop() -> Iterator[Loop]:
    """Object store, Ray, MLflow, Airflow; a project whose gate lets a quickly trained model pass; its first batch."""
    with running_stack(list(SERVICES)) as settings:
        running = Loop(settings)
        running.change_project(
            training={"epochs": 2},
            schedule={"data": None, "monitor": "@daily", "retry_delay_seconds": 1},
            suite={"scenarios": [{"name": "overall", "at_least": 0.2, "severity": "critical"}]},
        )
        running.deliver("first", 0, IMAGES)
        running.data_run = running.run(DATA)  # done when somebody needs its snapshot
        yield running


@dataclass(frozen=True)
class TrainRun:
    """A run of the train DAG whose scheduler was killed -9 while its job trained."""

    run_id: str
    snapshot: str
    job_when_killed: str
    state: str


@pytest.fixture(scope="package")
def trained(loop: Loop) -> TrainRun:
    """The train DAG, run by hand on the snapshot that the data DAG has made; its scheduler dies in the middle."""
    assert loop.ended(DATA, loop.data_run) == "success", loop.airflow.task_states(DATA, loop.data_run)
    snapshot = loop.stores.ledger.latest(Snapshot, PROJECT)
    assert snapshot is not None
    uri = loop.stores.ledger.uri(snapshot)
    run = loop.run(DAG, {"snapshot": uri})
    (job,) = loop.until("the training's job", lambda: list(loop.job_names(DAG, "train", run)))
    loop.until("it trains", lambda: "training small_cnn" in loop.job_log(job))
    start = loop.started("airflow-scheduler")
    loop.kill("airflow-scheduler")
    status = loop.jobs(job)[job]
    loop.restarted("airflow-scheduler", start)
    return TrainRun(run, uri, status, loop.ended(DAG, run))
