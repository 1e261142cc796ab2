"""A stack of these tests' own (object store, MLflow, Ray), because they kill its parts; real garments in a snapshot."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import pytest
import yaml

from tests.integration.conftest import REPO, running_stack
from visionloop import layout
from visionloop.demo import fashion
from visionloop.project import Project, load_project, project_file
from visionloop.records import Record, Snapshot
from visionloop.settings import Settings
from visionloop.stack.process import family
from visionloop.stack.status import read_state
from visionloop.stages import deliver, ingest, snapshot, validate
from visionloop.stores import Stores, connect

sys.path.insert(0, str(REPO / "plugins"))

from visionloop_airflow.ray_api import Job, open_jobs

T = TypeVar("T")
IMAGES = 3_000
PATIENCE_S = 300.0
GATE = {"scenarios": [{"name": "overall", "severity": "critical", "at_least": 0.3, "not_worse_by": 0.5}]}


@dataclass
class Cluster:
    """The running stack as Airflow and a user see it."""

    settings: Settings

    def __post_init__(self) -> None:
        self.stores = self.connect()
        self._jobs = 0

    def connect(self) -> Stores:
        """The stores as another process opens them."""
        return connect(self.settings)

    def project(self, name: str, **training: object) -> Project:
        """Write a project like the example's, trained quickly, with a gate that lets it pass; jobs read the file."""
        content = yaml.safe_load((REPO / "projects" / "fashion" / "project.yaml").read_text())
        content["project"] = name
        content["data"]["splits"]["salt"] = "fashion"  # the same split for all of these projects
        content["training"] |= {"augment": ["flip"], "precision": "fp32", **training}
        content |= {"suite": GATE, "gate": {"must_improve": False}}
        path = self.settings.projects / name / "project.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
        return load_project(project_file(self.settings.projects, name))

    def snapshot(self, project: Project, start: int = 0, stop: int = IMAGES) -> Snapshot:
        """Real garments on their way from a folder into the dataset."""
        folder = self.settings.home / "deliveries" / f"{project.name}-{start}"
        fashion.write_idx(folder, *fashion.clean("train", start, stop), metadata={"camera": "belt-1"})
        stores, batch = self.stores, f"b{start}"
        deliver.run(project, deliver.Inputs(folder=folder, batch=batch), stores)
        arrived = ingest.run(project, ingest.Inputs(batch=batch), stores)
        valid = validate.run(project, validate.Inputs(ingest=stores.ledger.uri(arrived)), stores)
        return snapshot.run(project, snapshot.Inputs(validation=stores.ledger.uri(valid)), stores)

    def submit(self, project: Project, stage: str, **inputs: object) -> str:
        """Start a stage on Ray, as the Airflow operator does; returns the job's name."""
        self._jobs += 1
        name = f"{project.name}-{stage}-{self._jobs}"
        module = ["ray_jobs.train"] if stage == "train" else ["ray_jobs.run_stage", stage]
        given = ["--project", project.name, "--inputs", json.dumps(inputs), "--result", self._result(project, name)]
        command = shlex.join(["python", "-m", *module, *given])

        async def send() -> bool:
            async with open_jobs(self.settings) as jobs:
                return await jobs.submit(name, command, {}, 0.0)

        assert asyncio.run(send())
        return name

    def job(self, name: str) -> Job:
        """As Ray knows it."""

        async def ask() -> Job | None:
            async with open_jobs(self.settings) as jobs:
                return await jobs.job(name)

        found = asyncio.run(ask())
        assert found is not None
        return found

    def log(self, name: str) -> str:
        """All that the job printed, without the colours and names that Ray puts before a worker's lines."""

        async def ask() -> str:
            async with open_jobs(self.settings) as jobs:
                return await jobs.log(name)

        return re.sub(r"\x1b\[[0-9;]*m", "", asyncio.run(ask()))

    def ended(self, name: str, status: str = "SUCCEEDED") -> str:
        """Wait for the end of a job, which must be this one; returns its log."""
        until(lambda: self.job(name).ended, f"{name} ends", more=lambda: self.log(name))
        log = self.log(name)
        assert self.job(name).status == status, log
        return log

    def result(self, project: Project, name: str) -> dict[str, Any]:
        """What the job left for its task."""
        objects = self.stores.objects
        found: dict[str, Any] = json.loads(objects.get(objects.key(self._result(project, name))))
        return found

    def record(self, project: Project, name: str) -> Record:
        """The record that a job made."""
        return self.stores.ledger.read(self.result(project, name)["uri"])

    def workers(self) -> list[psutil.Process]:
        """The processes of this stack in which Ray Train trains."""
        return [process for process in self._processes() if "RayTrainWorker" in _title(process)]

    def drivers(self, job: str) -> list[psutil.Process]:
        """The process of a job's own command (a shell is around it)."""
        mark = f"/{job}.json"
        return [p for p in self._processes() if _title(p).startswith("python") and mark in _title(p)]

    def checkpointed(self, project: Project, epoch: int = 1) -> bool:
        """Does any training run of the project have this epoch's checkpoint, or a later one?"""
        keys = [item.key for item in self.stores.objects.scan(f"{layout.checked(project.name)}/checkpoints/")]
        done = [int(found[1]) for key in keys if (found := re.search(r"epoch-(\d{6})/state\.json$", key))]
        return max(done, default=0) >= epoch

    def runs(self, project: Project) -> list[Any]:
        """All runs that MLflow has of a project."""
        client = self.stores.registry._client
        experiment = client.get_experiment_by_name(project.name)
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def curve(self, run_id: str, key: str) -> list[int]:
        """The steps of a metric's points."""
        return [point.step for point in self.stores.registry._client.get_metric_history(run_id, key)]

    @contextlib.contextmanager
    def without(self, service: str) -> Iterator[None]:
        """While a service is dead and nobody starts it again; it runs again after the block."""
        state = read_state(self.settings.home)
        assert state is not None and state.supervisor is not None
        leader = state.services[service].leader
        assert leader is not None
        os.kill(state.supervisor.pid, signal.SIGSTOP)
        try:
            for pid in family(leader):
                os.kill(pid, signal.SIGKILL)
            yield
        finally:
            os.kill(state.supervisor.pid, signal.SIGCONT)
        until(lambda: self._well(service, leader.pid), f"{service} runs again")

    def _well(self, service: str, old_pid: int) -> bool:
        state = read_state(self.settings.home)
        kept = state.services[service] if state else None
        return bool(kept and kept.state == "running" and kept.leader and kept.leader.pid != old_pid)

    def _result(self, project: Project, job: str) -> str:
        return self.stores.objects.uri(f"{project.name}/jobs/{job}.json")

    def _processes(self) -> Iterator[psutil.Process]:
        home = str(self.settings.home)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("VISIONLOOP_HOME") == home:
                    yield process


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def until(found: Callable[[], T], what: str, *, more: Callable[[], str] = str, seconds: float = PATIENCE_S) -> T:
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{more()}"
        time.sleep(0.1)
    return answer


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Object store, MLflow and Ray."""
    with running_stack(["s3", "mlflow", "ray"]) as settings:
        yield Cluster(settings)
