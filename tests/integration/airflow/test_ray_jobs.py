"""Real Airflow, real Ray: one job per try whoever dies, and no job without its task."""

import re
from dataclasses import dataclass

import pytest

from tests.integration.airflow.conftest import Loop

COUNT, ENDS, REAP = "jobs__count", "jobs__ends", "jobs__reap"
LINES = 50
TEXT = f'''
from datetime import timedelta
from airflow.sdk import DAG, task
from visionloop_airflow.operator import RayJobOperator

twice = {{"retries": 2, "retry_delay": timedelta(seconds=1)}}
with DAG("{COUNT}", schedule=None, max_active_runs=9, default_args=twice):
    RayJobOperator(task_id="count", entrypoint="for i in $(seq {LINES}); do echo line $i; sleep 1; done")

with DAG("{ENDS}", schedule=None):
    RayJobOperator(task_id="fail", entrypoint="echo the reason; exit 3")
    RayJobOperator(task_id="late", entrypoint="sleep 600", timeout_seconds=8)

with DAG("{REAP}", schedule=None):

    @task
    def look():
        from visionloop_airflow.reaper import reap

        return reap("jobs")

    look()
'''


@dataclass(frozen=True)
class Counting:
    """A run whose job counts seconds."""

    run: str
    job: str


@pytest.fixture(scope="module")
def jobs(loop: Loop) -> Loop:
    loop.write_dag("jobs", TEXT)
    for dag in (COUNT, ENDS, REAP):
        loop.until("Airflow reads the DAGs", lambda dag=dag: loop.airflow.unpause(dag), 90)
    return loop


def count(jobs: Loop) -> str:
    return jobs.run(COUNT)


def counting(jobs: Loop, run: str) -> Counting:
    """Wait until the run's job is counting and its task waits in the triggerer."""
    jobs.task(COUNT, run, "count", "deferred")
    (name,) = jobs.until("its job", lambda: list(jobs.job_names(COUNT, "count", run)))
    jobs.until("it counts", lambda: "line 2\n" in jobs.job_log(name))
    return Counting(run, name)


@pytest.fixture(scope="module")
def ends(jobs: Loop) -> str:
    return jobs.run(ENDS)


@pytest.fixture(scope="module")
def runs(jobs: Loop, ends: str) -> dict[str, str]:
    """Side by side, because most of their time is waiting."""
    return {name: count(jobs) for name in ("survivor", "cleared", "marked")}


def test_a_task_that_a_user_marks_failed_ends_its_job(jobs: Loop, runs: dict[str, str]) -> None:
    marked = counting(jobs, runs["marked"])
    jobs.airflow.set_task_state(COUNT, marked.run, "count", "failed")
    jobs.until("the job is stopped", lambda: jobs.jobs(marked.job)[marked.job] == "STOPPED", 30)


def test_a_cleared_task_ends_its_job_and_starts_one_of_its_own(jobs: Loop, runs: dict[str, str]) -> None:
    cleared = counting(jobs, runs["cleared"])
    jobs.airflow.clear(COUNT, cleared.run, ["count"])
    again = cleared.job.replace("-c0-", "-c1-")
    jobs.until("the new job", lambda: again in jobs.jobs(COUNT))
    jobs.task(COUNT, cleared.run, "count", "deferred")
    found = jobs.job_names(COUNT, "count", cleared.run)
    assert found.pop(cleared.job) == "STOPPED"
    assert list(found) == [again]
    assert found[again] in ("PENDING", "RUNNING")


def test_a_failed_job_fails_its_task_with_the_end_of_its_log(jobs: Loop, ends: str) -> None:
    assert jobs.task(ENDS, ends, "fail", "failed", "success") == "failed"
    log = jobs.task_log(ENDS, ends, "fail")
    assert "failed: Job entrypoint command failed with exit code 3" in log
    assert "the reason" in log


def test_a_job_that_is_late_is_stopped(jobs: Loop, ends: str) -> None:
    assert jobs.task(ENDS, ends, "late", "failed", "success") == "failed"
    jobs.until("its job is stopped", lambda: list(jobs.job_names(ENDS, "late", ends).values()) == ["STOPPED"], 30)


def test_one_job_whoever_dies(jobs: Loop, runs: dict[str, str]) -> None:
    """The triggerer dies, then nearly all of Airflow."""
    survivor = counting(jobs, runs["survivor"])
    for dying in (["airflow-triggerer"], ["airflow-scheduler", "airflow-triggerer", "airflow-api"]):
        assert jobs.jobs(survivor.job)[survivor.job] == "RUNNING"
        starts = {service: jobs.started(service) for service in dying}
        for service in dying:
            jobs.kill(service)
        for service, start in starts.items():
            jobs.restarted(service, start)
    assert jobs.task(COUNT, survivor.run, "count", "success", "failed", seconds=180) == "success"
    assert jobs.job_names(COUNT, "count", survivor.run) == {survivor.job: "SUCCEEDED"}
    lines = set(re.findall(r'"event":"(line \d+)"', jobs.task_log(COUNT, survivor.run, "count")))
    assert len(lines) == LINES


def test_the_reaper_ends_what_nobody_was_told_about(jobs: Loop) -> None:
    """A user marks the task while no triggerer runs."""
    orphan = counting(jobs, count(jobs))
    start = jobs.started("airflow-triggerer")
    jobs.kill("airflow-triggerer")
    jobs.airflow.set_task_state(COUNT, orphan.run, "count", "failed")
    jobs.restarted("airflow-triggerer", start)
    if jobs.jobs(orphan.job)[orphan.job] == "RUNNING":
        look = jobs.run(REAP)
        assert jobs.ended(REAP, look) == "success"
    jobs.until("it ends", lambda: jobs.jobs(orphan.job)[orphan.job] != "RUNNING", 20)
    assert jobs.jobs(orphan.job)[orphan.job] == "STOPPED"
