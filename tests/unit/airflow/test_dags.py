"""The four DAGs of a project file, as Airflow reads them from the stubs: tasks, edges, starts, assets, isolation."""

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import Asset
from airflow.sdk.definitions.asset import AssetAny
from airflow.serialization.serialized_objects import DagSerialization

from tests.unit.airflow.conftest import ROOT
from visionloop.errors import ConfigError
from visionloop_dags.factory import project_dags
from visionloop_dags.write_stubs import write_stubs

MINIMAL = {
    "project": "parts",
    "task": {"classes": ["good", "bad"], "image": {"height": 32, "width": 32}},
    "suite": {"scenarios": [{"name": "overall", "at_least": 0.9}]},
    "release": {"approvers": ["ann", "bob"]},
}
HEAVY = ["torch", "ray", "mlflow", "great_expectations", "evidently", "pandas", "numpy", "lance"]


def write(folder, name="parts", **changed):
    """A project file; returns its path."""
    path = folder / name / "project.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({**MINIMAL, "project": name, **changed}))
    return path


def read(folder):
    """The stubs of all projects in `folder`, read as Airflow reads them."""
    out = folder / "dags"
    write_stubs(folder, out)
    return DagBag(str(out))


def edges(dag):
    return {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}


@pytest.fixture
def dags(tmp_path):
    return project_dags(write(tmp_path))


def test_four_dags(dags):
    assert list(dags) == ["parts__data", "parts__train", "parts__release", "parts__monitor"]
    for dag in dags.values():
        assert (dag.max_active_runs, dag.catchup) == (1, False)
        assert {"visionloop", "parts"} <= dag.tags
        assert dag.doc_md.startswith("# parts: ")


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("data", {"find": ["ingest"], "ingest": ["validate"], "validate": ["snapshot"], "snapshot": []}),
        (
            "train",
            {"plan": ["train"], "train": ["evaluate"], "evaluate": ["gate"], "gate": ["package"], "package": []},
        ),
        (
            "release",
            {
                "approve": ["call_off", "canary", "preflight", "promote", "shadow"],
                "preflight": ["call_off", "shadow"],
                "shadow": ["call_off", "canary"],
                "canary": ["call_off", "promote"],
                "promote": ["call_off", "released"],
                "call_off": [],
                "released": [],
            },
        ),
        ("monitor", {"ready": ["window"], "window": ["drift"], "drift": ["decide"], "decide": []}),
    ],
)
def test_tasks_and_edges(dags, verb, expected):
    assert edges(dags[f"parts__{verb}"]) == expected


def test_the_assets_close_the_circle(dags):
    outlets = {
        (dag.dag_id, task.task_id): [asset.uri for asset in task.outlets]
        for dag in dags.values()
        for task in dag.tasks
        if task.outlets
    }
    assert outlets == {
        ("parts__data", "snapshot"): ["visionloop://parts/snapshot"],
        ("parts__train", "package"): ["visionloop://parts/candidate"],
        ("parts__release", "promote"): ["visionloop://parts/champion"],
        ("parts__monitor", "decide"): ["visionloop://parts/retrain"],
    }
    train, release = dags["parts__train"].schedule, dags["parts__release"].schedule
    assert isinstance(train, AssetAny)
    assert {asset.uri for asset in train.objects} == {"visionloop://parts/snapshot", "visionloop://parts/retrain"}
    assert isinstance(release, Asset)
    assert release.uri == "visionloop://parts/candidate"


@pytest.mark.parametrize(
    ("task", "goes_on_with"),
    [
        ("data.validate", ["accepted"]),
        ("data.ingest", None),
        ("train.gate", ["passed"]),
        ("train.package", None),
        ("release.shadow", [None, "promoted"]),
        ("release.canary", [None, "promoted"]),
        ("release.promote", ["promoted"]),
        ("monitor.decide", ["retrain"]),
    ],
)
def test_which_outcomes_go_on(dags, task, goes_on_with):
    verb, _, task_id = task.partition(".")
    assert dags[f"parts__{verb}"].get_task(task_id).goes_on_with == goes_on_with


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("30s", timedelta(seconds=30)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("@daily", "@daily"),
        ("0 3 * * 1", "0 3 * * 1"),
        (None, None),
    ],
)
def test_schedules(tmp_path, text, schedule):
    dags = project_dags(write(tmp_path, schedule={"data": text, "monitor": text}))
    assert dags["parts__data"].schedule == schedule
    monitor = dags["parts__monitor"].schedule
    if schedule is None:
        assert monitor is None
    else:
        times = monitor.timetable
        assert getattr(times, "delta", None) == schedule or times.expression == schedule.replace("@daily", "0 0 * * *")
        assert monitor.asset_condition == Asset("visionloop://parts/champion", group="visionloop")


def test_a_schedule_without_a_timetable_stays_as_it_is(tmp_path):
    assert project_dags(write(tmp_path, schedule={"monitor": "@once"}))["parts__monitor"].schedule == "@once"


def test_retries_and_pool_come_from_the_project_file(tmp_path):
    dags = project_dags(write(tmp_path, schedule={"retries": 5, "retry_delay_seconds": 7, "pool": "gpu"}))
    for task in (task for dag in dags.values() for task in dag.tasks):
        assert (task.retries, task.retry_delay, task.pool) == (5, timedelta(seconds=7), "gpu")


def test_the_approval_asks_the_approvers_of_the_project(tmp_path):
    release = {"approvers": ["ann", "bob"], "approval_timeout_hours": 3}
    approve = project_dags(write(tmp_path, release=release))["parts__release"].get_task("approve")
    assert [user["id"] for user in approve.assigned_users] == ["ann", "bob"]
    assert approve.response_timeout == timedelta(hours=3)
    assert (approve.defaults, approve.automatic) == (["Reject"], False)
    assert list(approve.serialized_params) == ["reason"]


def test_an_automatic_approval(tmp_path):
    dags = project_dags(write(tmp_path, release={"approval": "automatic"}))
    assert dags["parts__release"].get_task("approve").automatic is True


def test_training_reserves_its_workers_by_itself(dags):
    train = dags["parts__train"].get_task("train")
    assert (train.module, train.num_cpus) == ("ray_jobs.train", 0.0)
    assert dags["parts__train"].get_task("evaluate").num_cpus == 1.0


def test_airflow_reads_and_stores_the_stubs(tmp_path):
    write(tmp_path, "parts")
    write(tmp_path, "screws")
    bag = read(tmp_path)
    assert bag.import_errors == {}
    assert len(bag.dags) == 8
    for dag in bag.dags.values():
        again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert sorted(again.task_dict) == sorted(dag.task_dict)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("project: bad\ntrainig: {}\n", "project.yaml:2: found unknown key `trainig`"),
        ("project: bad\n  task: [\n", "project.yaml:2: this is no YAML"),
        (yaml.safe_dump({**MINIMAL, "project": "other"}), "project: expected bad, its folder, found other"),
    ],
)
def test_a_broken_project_is_an_import_error_of_its_own(tmp_path, text, said):
    write(tmp_path, "parts")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "project.yaml").write_text(text)
    bag = read(tmp_path)
    assert sorted(bag.dags) == ["parts__data", "parts__monitor", "parts__release", "parts__train"]
    ((file, trace),) = bag.import_errors.items()
    assert file.endswith("bad.py")
    assert f"{tmp_path}/bad/project.yaml:" in trace
    assert said in trace


def test_a_running_task_builds_its_own_dag_only(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "parts__train")
    assert list(project_dags(path)) == ["parts__train"]


def test_a_folder_of_another_name_is_an_error(tmp_path):
    path = write(tmp_path)
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="expected elsewhere, its folder, found parts"):
        project_dags(tmp_path / "elsewhere" / "project.yaml")


def test_stubs_follow_the_projects_and_leave_other_files(tmp_path):
    out = tmp_path / "dags"
    write(tmp_path, "parts")
    gone = write(tmp_path, "gone")
    write_stubs(tmp_path, out)
    (out / "own.py").write_text("# a DAG of somebody else")
    before = (out / "parts.py").stat().st_mtime_ns
    gone.unlink()
    assert write_stubs(tmp_path, out) == [out / "parts.py"]
    assert sorted(path.name for path in out.iterdir()) == ["own.py", "parts.py"]
    assert (out / "parts.py").stat().st_mtime_ns == before


def test_parsing_imports_nothing_heavy(tmp_path):
    """In a fresh process: what is loaded after the stub, less what Airflow itself loads."""
    write(tmp_path)
    write_stubs(tmp_path, tmp_path / "dags")
    code = (
        "import json, runpy, sys, airflow.sdk\n"
        f"before = set(sys.modules); runpy.run_path({str(tmp_path / 'dags' / 'parts.py')!r})\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules and name not in before]))"
    )
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "dags", "plugins"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
