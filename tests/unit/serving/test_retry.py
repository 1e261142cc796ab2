"""Which failures are tried again, after which pause, and how often: by hand, both sides of each bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.serving.client.retry import MOST_TRIES, pause_before_retry

CODES = [
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "DATA_LOSS", "UNAUTHENTICATED"),
]


def pause(code="UNAVAILABLE", *, tries=1, left=60.0, luck=1.0, **more) -> float | None:
    return pause_before_retry(code, tries=tries, left_seconds=left, luck=luck, **more)


@pytest.mark.parametrize("code", CODES)
def test_only_a_server_that_was_not_there_is_asked_again(code):
    assert pause(code) is None
    assert pause() is not None


@pytest.mark.parametrize(("tries", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (40, 1.0)])
def test_the_pause_doubles_up_to_a_second(tries, seconds):
    assert pause(tries=tries, most_tries=100) == pytest.approx(seconds)
    assert pause(tries=tries, most_tries=100, luck=0.0) == pytest.approx(seconds / 2)


def test_there_is_a_most():
    assert MOST_TRIES == 10
    assert pause(tries=9) == pytest.approx(1.0)
    assert pause(tries=10) is None
    assert pause(tries=1, most_tries=1) is None


@pytest.mark.parametrize(("left", "again"), [(0.101, True), (0.1, False), (0.0, False), (-1.0, False)])
def test_a_pause_that_the_deadline_does_not_leave_is_not_made(left, again):
    assert (pause(left=left) is not None) is again


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize(
    ("said", "seconds"),
    [("250", 0.25), ("0", 0.0), ("-1", None), ("soon", None), ("", None), ("59999", 59.999), ("60000", None)],
)
def test_a_server_that_says_when_is_obeyed(code, said, seconds):
    assert pause(code, heads={"grpc-retry-pushback-ms": said}) == (None if seconds is None else pytest.approx(seconds))


def test_what_the_server_judged_stays_judged_whatever_it_says():
    assert pause("INVALID_ARGUMENT", heads={"grpc-retry-pushback-ms": "10"}) is None
    assert pause("UNAVAILABLE", tries=10, heads={"grpc-retry-pushback-ms": "10"}) is None


@given(st.integers(1, 50), st.floats(-5, 100), st.floats(0, 1))
def test_a_pause_is_always_within_the_deadline(tries, left, luck):
    found = pause(tries=tries, left=left, luck=luck, most_tries=100)
    assert found is None or 0 < found < left
