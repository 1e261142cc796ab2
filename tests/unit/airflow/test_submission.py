"""The name of a Ray job: the same for the same try, another after a clear or a failed job."""

import hashlib

import pytest

from tests.unit.airflow.conftest import TaskInstance
from visionloop_airflow.submission import metadata, submission

RUN = hashlib.sha1(b"scheduled__1").hexdigest()[:12]


@pytest.mark.parametrize(
    ("facts", "retries", "attempt", "expected"),
    [
        ({}, 2, 1, f"p__data-ingest-{RUN}-c0-a1"),
        ({}, 2, 3, f"p__data-ingest-{RUN}-c0-a3"),
        # Airflow sets max_tries to try_number + retries when a user clears the task.
        ({"max_tries": 3}, 2, 1, f"p__data-ingest-{RUN}-c1-a1"),
        ({"max_tries": 5}, 2, 1, f"p__data-ingest-{RUN}-c3-a1"),
        ({"max_tries": 0}, 0, 1, f"p__data-ingest-{RUN}-c0-a1"),
        # Somebody has raised the retries in the project file since.
        ({"max_tries": 2}, 4, 1, f"p__data-ingest-{RUN}-c0-a1"),
        ({"map_index": 0}, 2, 1, f"p__data-ingest-m0-{RUN}-c0-a1"),
        ({"map_index": 7}, 2, 1, f"p__data-ingest-m7-{RUN}-c0-a1"),
        ({"map_index": None}, 2, 1, f"p__data-ingest-{RUN}-c0-a1"),
        ({"task_id": "snapshot"}, 2, 1, f"p__data-snapshot-{RUN}-c0-a1"),
    ],
)
def test_name(facts, retries, attempt, expected):
    assert submission(TaskInstance(**facts), retries).id(attempt) == expected


def test_a_retry_of_airflow_changes_nothing():
    assert submission(TaskInstance(try_number=1), 2) == submission(TaskInstance(try_number=3), 2)


def test_another_run_has_other_names():
    assert submission(TaskInstance(run_id="manual__2"), 2).id(1) != submission(TaskInstance(), 2).id(1)


@pytest.mark.parametrize(
    ("other", "outdated"),
    [
        ({}, True),
        ({"max_tries": 3}, False),
        ({"run_id": "scheduled__2"}, False),
        ({"task_id": "ingest2"}, False),
        ({"map_index": 1}, False),
    ],
)
def test_outdated_are_the_jobs_from_before_the_clear(other, outdated):
    cleared = submission(TaskInstance(max_tries=3), 2)
    assert cleared.outdated(submission(TaskInstance(**other), 2).id(1)) is outdated


def test_clear_10_is_not_taken_for_clear_1():
    assert submission(TaskInstance(max_tries=3), 2).outdated(submission(TaskInstance(max_tries=12), 2).id(1))


def test_metadata_are_strings():
    assert metadata(TaskInstance(map_index=3)) == {
        "airflow_dag": "p__data",
        "airflow_run": "scheduled__1",
        "airflow_task": "ingest",
        "airflow_map_index": "3",
    }
