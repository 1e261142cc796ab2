"""The endpoint's client: requests of the right size and marks, answers in order, failures with code and lane."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from visionloop.errors import DataError, StoreError
from visionloop.project import Project, parse_project
from visionloop.serving.client import Client, EndpointError

from .endpoint import Asked, Failed, Said, endpoint

TEXT = """\
project: p
task: {classes: [dark, bright], image: {height: 8, width: 8, channels: 1}}
suite: {scenarios: [{name: overall}]}
serving: {max_batch_size: 4, timeout_ms: 300}
release: {approval: automatic}
"""


@pytest.fixture
def project() -> Project:
    return parse_project(TEXT, Path("project.yaml"))


class Lane:
    """Answers by brightness; keeps what it was asked; fails when told to."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.failing: Failed | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self, asked: Asked) -> Said | Failed:
        self.asked.append(asked)
        self.free.wait(20)
        if self.failing:
            return self.failing
        bright = asked.images.mean(axis=(1, 2, 3)) / 255
        return Said("canary", 7, np.stack([1 - bright, bright], axis=1).astype(np.float32))


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture
def client(project: Project, lane: Lane) -> Iterator[Client]:
    with endpoint(lane) as url, Client(url, project) as opened:
        yield opened


def images(*levels: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 1), level, np.uint8) for level in levels])


def test_answers_are_in_the_order_of_the_images(client: Client) -> None:
    levels = [0, 255, 10, 250, 20, 240, 30, 230, 0]
    answers = client.predict(images(*levels))
    assert [a.label for a in answers] == ["dark" if level < 128 else "bright" for level in levels]
    assert answers[1].confidence == pytest.approx(1.0)
    assert answers[2].probabilities[1] == pytest.approx(10 / 255)
    assert {(a.lane, a.version) for a in answers} == {("canary", 7)}
    assert all(a.request_id and 0 < a.latency_ms < 10_000 for a in answers)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_requests_are_as_large_as_triton_takes(client: Client, lane: Lane, count: int, sizes: list[int]) -> None:
    assert len(client.predict(np.zeros((count, 8, 8, 1), np.uint8))) == count
    in_order = sorted(lane.asked, key=lambda asked: int(asked.headers["x-request-id"].partition(".")[2] or 0))
    assert [len(asked.images) for asked in in_order] == sizes


def test_an_array_that_lies_elsewise_in_memory_is_sent_as_it_reads(client: Client, lane: Lane) -> None:
    batch = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)[:, ::-1].transpose(0, 2, 1, 3)
    client.predict(batch)
    assert (lane.asked[0].images == batch).all()


def test_probes_and_sessions_are_marked_and_others_not(client: Client, lane: Lane) -> None:
    client.predict(images(1), probe=True)
    client.predict(images(1), session="u1")
    client.predict(images(1))
    marks = [(a.headers.get("x-visionloop-probe"), a.headers.get("x-session")) for a in lane.asked]
    assert marks == [("1", None), (None, "u1"), (None, None)]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 8, 8, 3), np.uint8)]
)
def test_images_of_another_shape_are_refused_before_they_are_sent(
    client: Client, lane: Lane, wrong: np.ndarray
) -> None:
    with pytest.raises(DataError, match=r"p expects uint8 images \[N, 8, 8, 1\], found"):
        client.predict(wrong)
    assert lane.asked == []


@pytest.mark.parametrize("failed_lane", ["canary", "stable", None])
def test_a_failure_has_gRPCs_name_and_the_lane(client: Client, lane: Lane, failed_lane: str | None) -> None:
    lane.failing = Failed(grpc.StatusCode.INTERNAL, "Stub process\n  is not healthy", failed_lane)
    with pytest.raises(EndpointError) as caught:
        client.predict(images(1))
    assert (caught.value.code, caught.value.lane) == ("INTERNAL", failed_lane)
    assert str(caught.value).endswith("did not answer for p: INTERNAL: Stub process is not healthy")
    assert isinstance(caught.value, StoreError)


@pytest.mark.parametrize("deadline", [None, 0.05])
def test_an_answer_that_is_late_is_none(client: Client, lane: Lane, deadline: float | None) -> None:
    """By default the project's own time-out, here 0.3 s."""
    lane.free.clear()
    began = time.monotonic()
    with pytest.raises(EndpointError, match="DEADLINE_EXCEEDED"):
        client.predict(images(1), deadline_seconds=deadline)
    lane.free.set()
    assert time.monotonic() - began < 10


def test_an_endpoint_that_is_down_is_named(project: Project) -> None:
    with Client("http://127.0.0.1:9", project) as opened, pytest.raises(EndpointError, match=r"127.0.0.1:9.*UNAVAIL"):
        opened.predict(images(1))
