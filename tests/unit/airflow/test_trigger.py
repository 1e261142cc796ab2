"""The trigger against a Jobs API over HTTP: each end of a job, a head that goes and comes back, a user's kill."""

import asyncio
import logging

import pytest

from visionloop_airflow.trigger import RayJobTrigger

NAME = "p__data-ingest-000-c0-a1"


def trigger(*, unreachable_seconds=5.0):
    return RayJobTrigger(NAME, poll_seconds=0.02, unreachable_seconds=unreachable_seconds)


async def first_event(waiting):
    async for event in waiting.run():
        return event.payload
    raise AssertionError("no event")


def run(ray, waiting, *meanwhile):
    """Run the trigger; before each step of `meanwhile` it has asked Ray at least three times."""

    async def both():
        task = asyncio.create_task(first_event(waiting))
        for step in meanwhile:
            asked = len(ray.requests)
            while len(ray.requests) < asked + 3:
                await asyncio.sleep(0.01)
            step()
        return await asyncio.wait_for(task, 20)

    return asyncio.run(asyncio.wait_for(both(), 30))


@pytest.fixture
def lines():
    """What the trigger has written into the task's log."""
    written = []

    class Lines(logging.Handler):
        def emit(self, record):
            written.append(record.getMessage())

    log = logging.Logger("lines")
    log.addHandler(Lines())
    RayJobTrigger._log, before = log, RayJobTrigger._log
    yield lambda: written
    RayJobTrigger._log = before


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_an_ended_job_gives_its_status_and_message(ray, status):
    ray.add(NAME, status, message="so it went")
    assert run(ray, trigger()) == {"status": status, "message": "so it went", "shown": 0}


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_waits_while_the_job_goes_on(ray, status):
    ray.add(NAME, status)
    steps = (lambda: ray.add(NAME, "RUNNING"), lambda: ray.add(NAME, "SUCCEEDED"))
    assert run(ray, trigger(), *steps)["status"] == "SUCCEEDED"


def test_a_job_that_ray_does_not_know_is_lost(ray):
    event = run(ray, trigger())
    assert event["status"] == "LOST"
    assert ray.url in event["message"]
    assert NAME in event["message"]


def test_the_log_is_streamed_by_whole_lines_and_the_rest_left_to_the_task(ray, lines):
    ray.add(NAME, "RUNNING", log="one\ntwo\nthr")
    event = run(
        ray,
        trigger(),
        lambda: ray.add(NAME, "RUNNING", log="one\ntwo\nthree\nfo"),
        lambda: ray.add(NAME, "SUCCEEDED", log="one\ntwo\nthree\nfour"),
    )
    assert lines() == ["one", "two", "three"]
    assert event["shown"] == len("one\ntwo\nthree\n")


def test_the_log_has_no_colours_even_where_one_is_half_written(ray, lines):
    ray.add(NAME, "RUNNING", log="\x1b[36m(Worker pid=7)\x1b[0m epoch 1 [1/2]\n\x1b[1m\x1b[3")
    event = run(
        ray,
        trigger(),
        lambda: ray.add(NAME, "RUNNING", log="\x1b[36m(Worker pid=7)\x1b[0m epoch 1 [1/2]\n\x1b[1m\x1b[32mnext\n"),
        lambda: ray.add(NAME, "SUCCEEDED"),
    )
    assert lines() == ["(Worker pid=7) epoch 1 [1/2]", "next"]
    assert event["shown"] == len("(Worker pid=7) epoch 1 [1/2]\nnext\n")


def test_a_head_that_goes_and_comes_back_costs_nothing(ray, lines):
    ray.add(NAME, "RUNNING")
    event = run(ray, trigger(), ray.vanish, ray.come_back, lambda: ray.add(NAME, "SUCCEEDED"))
    assert event["status"] == "SUCCEEDED"
    assert sum("cannot be reached" in line for line in lines()) == 1
    assert any("answers again" in line for line in lines())


def test_a_head_that_stays_away_ends_the_wait_in_one_line(ray):
    ray.add(NAME, "RUNNING")
    event = run(ray, trigger(unreachable_seconds=0.3), ray.vanish)
    assert event["status"] == "UNREACHABLE"
    assert f"Ray at {ray.url} cannot be reached" in event["message"]
    assert "\n" not in event["message"]


def test_a_wrong_token_is_refused_at_once(ray):
    ray.add(NAME, "RUNNING")
    ray.token = "another"
    event = run(ray, trigger())
    assert event["status"] == "REFUSED"
    assert "VISIONLOOP_RAY_TOKEN" in event["message"]


def test_the_kill_of_a_user_stops_the_job(ray):
    ray.add(NAME, "RUNNING")
    asyncio.run(trigger().on_kill())
    assert ray.stopped == [NAME]


def test_the_kill_waits_for_a_head_that_is_away(ray):
    ray.add(NAME, "RUNNING")
    ray.vanish()

    async def kill():
        task = asyncio.create_task(trigger().on_kill())
        while len(ray.requests) < 2:
            await asyncio.sleep(0.01)
        ray.come_back()
        await asyncio.wait_for(task, 5)

    asyncio.run(kill())
    assert ray.stopped == [NAME]


def test_a_triggerer_that_shuts_down_leaves_the_job_alone(ray):
    ray.add(NAME, "RUNNING")

    async def shut_down():
        waiting = trigger()
        task = asyncio.create_task(first_event(waiting))
        while not ray.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waiting.cleanup()

    asyncio.run(shut_down())
    assert ray.stopped == []
    assert ray.jobs[NAME]["status"] == "RUNNING"


def test_made_again_from_what_airflow_stores():
    path, arguments = trigger().serialize()
    assert path == "visionloop_airflow.trigger.RayJobTrigger"
    assert RayJobTrigger(**arguments).serialize() == (path, arguments)
