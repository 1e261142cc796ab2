"""The operator against a Jobs API over HTTP: one job per try, found again, stopped with its task, clear failures."""

import pytest
import structlog
from airflow.sdk.exceptions import AirflowException, TaskDeferralError, TaskDeferralTimeout, TaskDeferred

from tests.unit.airflow.conftest import TaskInstance
from visionloop_airflow.operator import LINK_KEY, RayJobLink, RayJobOperator
from visionloop_airflow.submission import submission


def operator(**changed):
    facts = {"entrypoint": "echo 1", "retries": 2, "poll_seconds": 0.02, "unreachable_seconds": 0.3}
    return RayJobOperator(task_id="ingest", **{**facts, **changed})


def execute(ti, **changed):
    """Execute as in a fresh worker; returns the name that the trigger waits for."""
    with pytest.raises(TaskDeferred) as deferred:
        operator(**changed).execute({"ti": ti})
    assert deferred.value.kwargs == {"submission_id": deferred.value.trigger.submission_id}
    return deferred.value.trigger.submission_id


def name(ti, attempt=1):
    return submission(ti, 2).id(attempt)


def test_submits_once_and_waits(ray, ti):
    assert execute(ti, num_cpus=1.0) == name(ti)
    job = ray.jobs[name(ti)]
    assert job["entrypoint"] == "echo 1"
    assert job["entrypoint_num_cpus"] == 1.0
    assert job["metadata"]["airflow_run"] == "scheduled__1"


def test_the_link_to_the_job_lasts_through_all_parts_of_the_task(ray, ti):
    """Airflow asks the link after each part, in a process of its own, and stores the answer."""
    link, first, resumed = RayJobLink(), operator(), operator()
    assert link.get_link(first, ti_key=ti) == ""
    with pytest.raises(TaskDeferred):
        first.execute({"ti": ti})
    ti.xcom_push(LINK_KEY, link.get_link(first, ti_key=ti))
    assert ti.pushed[LINK_KEY] == f"{ray.url}/#/jobs/{name(ti)}"
    resumed.execute_complete({"ti": ti}, {"status": "SUCCEEDED", "message": "", "shown": 0}, name(ti))
    assert link.get_link(resumed, ti_key=ti) == ti.pushed[LINK_KEY]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_worker_that_died_left_a_job_which_the_next_finds(ray, ti, status):
    execute(ti)
    ray.jobs[name(ti)]["status"] = status
    assert execute(ti) == name(ti)
    assert ray.submitted == [name(ti)]


def test_a_job_that_has_succeeded_is_just_taken(ray, ti):
    ray.add(name(ti), "SUCCEEDED")
    assert operator().execute({"ti": ti}) == name(ti)
    assert ray.submitted == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_after_a_failed_job_the_next_attempt_has_its_own(ray, ti, status):
    ray.add(name(ti), status)
    assert execute(ti) == name(ti, 2)
    assert ray.submitted == [name(ti, 2)]


def test_two_workers_at_the_same_time_share_one_job(ray, ti):
    """Ray says "already exists": the other one was faster between our look and our submission."""
    seen = operator()
    real = ray.jobs
    ray.jobs = type("Late", (dict,), {"get": lambda self, key: None})({name(ti): {"status": "RUNNING"}})
    with pytest.raises(TaskDeferred) as deferred:
        seen.execute({"ti": ti})
    assert deferred.value.trigger.submission_id == name(ti)
    assert ray.submitted == []
    ray.jobs = real


def test_a_cleared_task_ends_its_old_job_before_it_starts_a_new_one(ray, ti):
    execute(ti)
    cleared = TaskInstance(max_tries=3)
    assert execute(cleared) == name(cleared) != name(ti)
    assert ray.stopped == [name(ti)]


def test_ray_out_of_reach_is_one_line_with_address_and_advice(ray, ti):
    ray.vanish()
    with pytest.raises(
        AirflowException, match=rf"^Ray at {ray.url} cannot be reached .* for 0 s\. .*visionloop logs ray"
    ):
        operator().execute({"ti": ti})
    ray.come_back()


def test_a_wrong_token_names_the_setting(ray, ti):
    ray.token = "another"
    with pytest.raises(AirflowException, match=r"401.*VISIONLOOP_RAY_TOKEN"):
        operator().execute({"ti": ti})


def test_success_returns_the_name(ray, ti):
    event = {"status": "SUCCEEDED", "message": "", "shown": 0}
    assert operator().execute_complete({"ti": ti}, event, submission_id=name(ti)) == name(ti)


@pytest.mark.parametrize(("shown", "printed"), [(0, ["one", "two", "three"]), (8, ["three"]), (13, [])])
def test_what_the_trigger_has_not_shown_is_printed_at_the_end(ray, ti, shown, printed):
    ray.add(name(ti), "SUCCEEDED", log="one\ntwo\nthree")
    seen = operator()
    with structlog.testing.capture_logs() as written:
        seen.execute_complete(
            {"ti": ti}, {"status": "SUCCEEDED", "message": "", "shown": shown}, submission_id=name(ti)
        )
    assert [entry["event"] for entry in written][:-1] == printed


def test_a_failed_job_fails_with_the_end_of_its_log(ray, ti):
    log = "\n".join(f"line {n}" for n in range(30))
    ray.add(name(ti), "FAILED", log=log)
    event = {"status": "FAILED", "message": "exit code 3, last available logs (truncated):\nline 29", "shown": 0}
    with pytest.raises(AirflowException) as failure:
        operator().execute_complete({"ti": ti}, event, submission_id=name(ti))
    said = str(failure.value)
    assert said.startswith(f"the Ray job {name(ti)} failed: exit code 3\nline 10\n")
    assert said.endswith("line 29")
    assert "line 9\n" not in said


@pytest.mark.parametrize(
    ("status", "match"),
    [
        ("STOPPED", "was stopped outside Airflow"),
        ("LOST", "started anew"),
        ("UNREACHABLE", r"said so\. Is Ray running\?"),
        ("REFUSED", r"said so\. Is Ray running\?"),
    ],
)
def test_other_ends_fail_with_a_reason(ray, ti, status, match):
    event = {"status": status, "message": "said so", "shown": 0}
    with pytest.raises(AirflowException, match=match):
        operator().execute_complete({"ti": ti}, event, submission_id=name(ti))


@pytest.mark.parametrize(
    ("error", "raised"), [("Trigger timeout", TaskDeferralTimeout), ("Trigger failure", TaskDeferralError)]
)
def test_when_airflow_ends_the_wait_the_job_ends_too(ray, ti, error, raised):
    execute(ti)
    with pytest.raises(raised):
        operator().resume_execution("__fail__", {"error": error}, {"ti": ti})
    assert ray.stopped == [name(ti)]


def test_a_worker_that_is_killed_by_a_user_stops_the_job(ray, ti):
    seen = operator()
    with pytest.raises(TaskDeferred):
        seen.execute({"ti": ti})
    seen.on_kill()
    assert ray.stopped == [name(ti)]


def test_a_kill_that_comes_while_the_job_is_placed_stops_it_too(ray, ti, monkeypatch):
    """Airflow calls `on_kill` in a signal's handler, wherever the process is: in an event loop, here."""
    seen = operator()
    placed = seen._find_or_submit

    async def place_and_be_killed(*arguments):
        await placed(*arguments)
        seen.on_kill()
        raise KeyboardInterrupt

    monkeypatch.setattr(seen, "_find_or_submit", place_and_be_killed)
    with pytest.raises(KeyboardInterrupt):
        seen.execute({"ti": ti})
    assert ray.stopped == [name(ti)]


def test_a_timeout_is_handed_to_airflow(ray, ti):
    with pytest.raises(TaskDeferred) as deferred:
        operator(timeout_seconds=90).execute({"ti": ti})
    assert deferred.value.timeout.total_seconds() == 90
