"""Orphans: jobs that run although their task has ended; nothing else is touched."""

import pytest

from visionloop_airflow.ray_api import Job
from visionloop_airflow.reaper import orphans, reap


def job(name="j", status="RUNNING", dag="p__data"):
    return Job(
        name, status, "", {"airflow_dag": dag, "airflow_run": "r", "airflow_task": "t", "airflow_map_index": "-1"}
    )


@pytest.mark.parametrize(
    ("state", "orphaned"),
    [
        ("failed", True),
        ("success", True),
        ("skipped", True),
        ("removed", True),
        ("running", False),
        ("deferred", False),
        ("up_for_retry", False),
        ("queued", False),
        (None, False),
    ],
)
def test_by_the_state_of_the_task(state, orphaned):
    assert orphans([job()], "p", lambda metadata: state) == ([job()] if orphaned else [])


@pytest.mark.parametrize(
    "other",
    [
        job(status="SUCCEEDED"),
        job(status="STOPPED"),
        job(dag="q__data"),
        job(dag="p2__data"),
        Job("by hand", "RUNNING", "", {}),
    ],
)
def test_others_are_left_alone(other):
    assert orphans([other], "p", lambda metadata: "failed") == []


def test_a_head_out_of_reach_is_no_failure_of_the_task_that_looks(ray):
    ray.vanish()
    assert reap("p") == []
