"""The room between endpoint and writer: bounded by count and by bytes, first in first out, refusing at once."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.capture.buffer import Buffer
from visionloop.capture.exchange import Exchange


def exchange(size_bytes: int = 10) -> Exchange:
    made = Exchange()
    made.request_body += bytes(size_bytes)
    return made


def test_full_by_count() -> None:
    buffer = Buffer(largest_count=2)
    assert [buffer.offer(exchange()) for _ in range(3)] == [True, True, False]
    assert buffer.take(seconds=0) is not None
    assert buffer.offer(exchange())


@pytest.mark.parametrize(("last", "fits"), [(30, True), (31, False)])
def test_full_by_bytes(last: int, fits: bool) -> None:
    buffer = Buffer(largest_bytes=100)
    assert buffer.offer(exchange(70))
    assert buffer.offer(exchange(last)) is fits
    buffer.take(seconds=0)
    assert buffer.offer(exchange(70))


def test_the_oldest_comes_first_and_an_empty_room_has_none() -> None:
    buffer = Buffer()
    given = [exchange(n) for n in (1, 2, 3)]
    for each in given:
        buffer.offer(each)
    assert [buffer.take(seconds=0) for _ in range(4)] == [*given, None]


def test_many_are_taken_up_to_a_number_and_within_a_time() -> None:
    buffer = Buffer()
    for _ in range(5):
        buffer.offer(exchange())
    assert len(buffer.take_many(largest=3, seconds=5)) == 3
    began = time.monotonic()
    assert len(buffer.take_many(largest=3, seconds=0.05)) == 2
    assert time.monotonic() - began >= 0.05
    assert buffer.take_many(largest=3, seconds=0.01) == []


@given(st.lists(st.none() | st.integers(0, 60), max_size=40))
def test_bounds_hold_and_everything_taken_in_comes_out(steps: list[int | None]) -> None:
    """None takes one out; a number offers one of so many bytes."""
    buffer, inside = Buffer(largest_count=5, largest_bytes=100), []
    for step in steps:
        if step is None:
            taken = buffer.take(seconds=0)
            assert taken is (inside.pop(0) if inside else None)
            continue
        offered = exchange(step)
        room = len(inside) < 5 and sum(e.size_bytes for e in inside) + step <= 100
        assert buffer.offer(offered) is room
        inside += [offered] if room else []


def test_threads_never_overfill_it() -> None:
    buffer, taken_in = Buffer(largest_count=50), []

    def offer() -> None:
        taken_in.extend(buffer.offer(exchange()) for _ in range(40))

    threads = [threading.Thread(target=offer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken_in) == 50
