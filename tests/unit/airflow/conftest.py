"""Airflow for unit tests: a home of its own, no database, no server; a Ray head that is faked over real HTTP."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HOME = tempfile.mkdtemp(prefix="visionloop-airflow-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["AIRFLOW_HOME"] = HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
for folder in ("plugins", "dags"):
    sys.path.insert(0, str(ROOT / folder))

from tests.unit.airflow.fake_ray import FakeRay  # noqa: E402

TOKEN = "a-token"


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    """A Ray head that asks for the token, with the settings that lead to it and to an object store in a folder."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    with FakeRay(TOKEN) as head:
        monkeypatch.setenv("VISIONLOOP_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("VISIONLOOP_STORE", f"file://{tmp_path}/store")
        monkeypatch.setenv("VISIONLOOP_RAY_URL", head.url)
        monkeypatch.setenv("VISIONLOOP_RAY_TOKEN", str(tmp_path / "token"))
        yield head


class TaskInstance(SimpleNamespace):
    """What the operators ask of Airflow's task instance; keeps what was pushed."""

    def __init__(self, **changed: Any) -> None:
        facts = {"dag_id": "p__data", "task_id": "ingest", "run_id": "scheduled__1", "map_index": -1, "max_tries": 2}
        super().__init__(**{**facts, **changed}, pushed={})

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep it."""
        self.pushed[key] = value

    def xcom_pull(self, *, key: str, map_indexes: int) -> Any:
        """What was pushed, by this task instance."""
        assert map_indexes == self.map_index
        return self.pushed.get(key)


@pytest.fixture
def ti() -> TaskInstance:
    """The first try of a task with two retries."""
    return TaskInstance()
