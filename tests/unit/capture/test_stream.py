"""One stream per sampled request: whole answers are handed over, all else is counted, and memory is bounded."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from visionloop.capture.buffer import Buffer
from visionloop.capture.counters import Counters
from visionloop.capture.stream import CaptureStream

from .traffic import ANSWER, grpc_messages, messages, stream


class Service:
    """The service without its server."""

    def __init__(self, largest_count: int = 100, **bounds: int) -> None:
        self.buffer, self.counters = Buffer(largest_count=largest_count), Counters()
        self.stream = CaptureStream(self.buffer, self.counters, **bounds)

    def pass_through(self, *requests: Iterable[Any]) -> None:
        """These requests at the same time."""

        async def one(of: Iterable[Any]) -> None:
            assert [answer async for answer in self.stream.Process(stream(of), None)] == []

        async def all_of() -> None:
            await asyncio.gather(*(one(of) for of in requests))

        asyncio.run(all_of())

    def counted(self) -> dict[str, int]:
        return {name: self.counters[name] for name in ("captured", "dropped", "unreadable")}


@pytest.mark.parametrize("piece", [1, 20, 10_000])
def test_pieces_become_one_exchange(piece: int) -> None:
    service = Service()
    service.pass_through(messages(piece=piece))
    found = service.buffer.take(seconds=0)
    assert found is not None
    assert (found.request_id, found.lane, found.status, found.latency_ms) == ("r1", "stable", 200, 2.5)
    assert found.answered
    assert service.counted() == {"captured": 1, "dropped": 0, "unreadable": 0}


@pytest.mark.parametrize(("status", "counted"), [("0", "captured"), ("13", "unreadable"), ("14", "unreadable")])
def test_an_error_over_grpc_is_http_200_too(status: str, counted: str) -> None:
    service = Service()
    service.pass_through(grpc_messages(status))
    assert service.counted()[counted] == 1


@pytest.mark.parametrize("status", ["500", "404", "", "abc"])
def test_only_answers_are_kept(status: str) -> None:
    service = Service()
    service.pass_through(messages(answer={**ANSWER, ":status": status}))
    assert service.counted() == {"captured": 0, "dropped": 0, "unreadable": 1}


def test_a_request_that_breaks_off_leaves_nothing() -> None:
    service = Service(largest_held_bytes=1000)
    for _ in range(10):  # held bytes are given back each time
        service.pass_through(messages()[:-1])
    assert service.counted() == {"captured": 0, "dropped": 0, "unreadable": 0}
    assert service.counters["cut"] == 10
    service.pass_through(messages())
    assert service.counted()["captured"] == 1
    assert service.counters["cut"] == 10


def test_a_full_buffer_drops_and_counts() -> None:
    service = Service(largest_count=2)
    service.pass_through(*(messages(f"r{n}") for n in range(5)))
    assert service.counted() == {"captured": 2, "dropped": 3, "unreadable": 0}


def test_all_requests_together_hold_no_more_than_allowed() -> None:
    size = sum(len(m.request_body.body) + len(m.response_body.body) for m in messages())
    fits, small = Service(largest_held_bytes=size), Service(largest_held_bytes=size - 1)
    for service in (fits, small):
        service.pass_through(messages())
        service.pass_through(messages())
    assert fits.counted() == {"captured": 2, "dropped": 0, "unreadable": 0}
    assert small.counted() == {"captured": 0, "dropped": 2, "unreadable": 0}


def test_one_request_that_is_too_large_is_dropped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.capture.stream.LARGEST_BYTES", 100)
    service = Service()
    service.pass_through(messages(piece=5))
    assert service.counted() == {"captured": 0, "dropped": 1, "unreadable": 0}


def test_what_became_of_each_request_is_counted_by_model_and_lane() -> None:
    service = Service(largest_count=1)
    service.pass_through(messages())
    service.pass_through(messages(), messages(answer={**ANSWER, ":status": "500"}), messages()[:2])
    became = {
        (outcome, lane): service.counters.labelled("requests", model="m", lane=lane, outcome=outcome)
        for outcome, lane in (("captured", "stable"), ("full", "stable"), ("refused", "stable"), ("cut", "none"))
    }
    assert set(became.values()) == {1}
    line = 'visionloop_capture_requests_total{lane="none",model="m",outcome="cut"} 1'
    assert line in service.counters.prometheus().splitlines()
    assert service.counters["bytes"] == sum(len(m.request_body.body) + len(m.response_body.body) for m in messages())


def test_one_request_that_is_too_large_and_many_that_hold_too_much_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = Service(largest_held_bytes=1)
    crowded.pass_through(messages())
    assert crowded.counters.labelled("requests", model="m", lane="none", outcome="crowded") == 1
    monkeypatch.setattr("visionloop.capture.stream.LARGEST_BYTES", 1)
    large = Service()
    large.pass_through(messages())
    assert large.counters.labelled("requests", model="m", lane="none", outcome="too_large") == 1
