"""Real Airflow, real Ray: one job per try whoever dies, and no job without its task."""

import re

import pytest

from tests.integration.airflow.conftest import Loop

DAG = "jobs__test"
LINES = 25
TEXT = f'''
from datetime import timedelta
from airflow.sdk import DAG, task
from visionloop_airflow.operator import RayJobOperator

with DAG("{DAG}", schedule=None, max_active_runs=9, default_args={{"retries": 2, "retry_delay": timedelta(seconds=1)}}):
    RayJobOperator(task_id="count", entrypoint="for i in $(seq {LINES}); do echo line $i; sleep 1; done")
    RayJobOperator(task_id="fail", entrypoint="echo the reason; exit 3", retries=0)
    RayJobOperator(task_id="late", entrypoint="sleep 600", timeout_seconds=8, retries=0)

with DAG("jobs__reap", schedule=None):

    @task
    def look():
        from visionloop_airflow.reaper import reap

        return reap("jobs")

    look()
'''


@pytest.fixture(scope="module")
def jobs(loop: Loop) -> Loop:
    loop.write_dag("jobs", TEXT)
    loop.until("Airflow reads the DAG", lambda: loop.airflow.unpause(DAG), 90)
    return loop


def counting(jobs: Loop) -> tuple[str, str]:
    """Start a run; returns its id and the name of the job that counts now."""
    before = jobs.jobs(f"{DAG}-count-")
    run = jobs.run(DAG)
    jobs.task(DAG, run, "count", "deferred")
    (name,) = jobs.until("Ray has the job", lambda: set(jobs.jobs(f"{DAG}-count-")) - set(before))
    jobs.until("it counts", lambda: "line 2\n" in jobs.job_log(name))
    return run, name


def task_log(jobs: Loop, run: str, task: str) -> str:
    folder = jobs.settings.home / "airflow" / "logs" / f"dag_id={DAG}" / f"run_id={run}" / f"task_id={task}"
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


@pytest.mark.parametrize(
    "dies", [["airflow-scheduler"], ["airflow-triggerer"], ["airflow-scheduler", "airflow-triggerer"]]
)
def test_one_job_whoever_dies(jobs: Loop, dies: list[str]) -> None:
    run, name = counting(jobs)
    for service in dies:
        jobs.kill(service)
    assert jobs.task(DAG, run, "count", "success", "failed", seconds=180) == "success"
    assert jobs.jobs(name.partition("-c0-")[0]) == {name: "SUCCEEDED"}
    lines = set(re.findall(r'"event":"(line \d+)"', task_log(jobs, run, "count")))
    assert len(lines) == LINES
    for service in dies:
        jobs.healthy(service)


def test_a_failed_job_fails_its_task_with_the_end_of_its_log(jobs: Loop) -> None:
    run, _ = counting(jobs)
    assert jobs.task(DAG, run, "fail", "failed", "success") == "failed"
    assert "the reason" in task_log(jobs, run, "fail")
    assert "failed: Job entrypoint command failed with exit code 3" in task_log(jobs, run, "fail")


def test_a_job_that_is_late_is_stopped(jobs: Loop) -> None:
    run, _ = counting(jobs)
    assert jobs.task(DAG, run, "late", "failed", "success") == "failed"
    assert "RUNNING" not in jobs.jobs(f"{DAG}-late-").values()


def test_a_cleared_task_ends_its_job_and_starts_one_of_its_own(jobs: Loop) -> None:
    run, name = counting(jobs)
    jobs.airflow.clear(DAG, run, ["count"])
    again = name.replace("-c0-", "-c1-")
    jobs.until("the new job", lambda: again in jobs.jobs(name.partition("-c0-")[0]))
    assert jobs.jobs(name)[name] == "STOPPED"
    assert jobs.task(DAG, run, "count", "success", "failed", seconds=120) == "success"


def test_a_task_that_a_user_marks_failed_ends_its_job(jobs: Loop) -> None:
    run, name = counting(jobs)
    jobs.airflow.set_task_state(DAG, run, "count", "failed")
    jobs.until("the job is stopped", lambda: jobs.jobs(name)[name] == "STOPPED", 30)


def test_the_reaper_ends_what_nobody_was_told_about(jobs: Loop) -> None:
    """A user marks the task while no triggerer runs."""
    run, name = counting(jobs)
    jobs.kill("airflow-triggerer")
    jobs.airflow.set_task_state(DAG, run, "count", "failed")
    jobs.healthy("airflow-triggerer")
    if jobs.jobs(name)[name] == "RUNNING":
        look = jobs.run("jobs__reap")
        assert jobs.ended("jobs__reap", look) == "success"
    assert jobs.until("it ends", lambda: jobs.jobs(name)[name] != "RUNNING", 20)
    assert jobs.jobs(name)[name] == "STOPPED"
