"""The writer: everything readable is written once; a store that is down costs rows at the end and never requests."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from visionloop.capture.buffer import Buffer
from visionloop.capture.counters import Counters
from visionloop.capture.writer import Writer
from visionloop.errors import StoreError
from visionloop.serving.kserve import Message
from visionloop.stores.objects import FileObjects

from .traffic import exchange


class Unsteady(FileObjects):
    """A store that is down for its first writes, or for ever."""

    def __init__(self, root: Path, down_for: float = 0) -> None:
        super().__init__(root)
        self.left = down_for
        self.tried = threading.Event()

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        if self.left > 0:
            self.left -= 1
            self.tried.set()
            raise StoreError("down")
        return super().put(key, data, content_type)


class Capture:
    """Buffer, writer and counters over a folder."""

    def __init__(self, folder: Path, down_for: float = 0) -> None:
        self.buffer, self.counters = Buffer(largest_count=20), Counters()
        self.objects = Unsteady(folder / "store", down_for)
        self.writer = Writer(
            self.buffer, self.objects, self.counters, image_share=lambda model: 1.0, flush_seconds=0.02
        )

    def rows(self) -> list[str]:
        """Request ids of the rows that were written."""
        keys = [item.key for item in self.objects.scan("m/captures/")]
        return [
            row["request_id"] for key in keys for row in pq.read_table(io.BytesIO(self.objects.get(key))).to_pylist()
        ]


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_captured_is_written_once(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    capture.writer.start()
    for number in range(10):
        assert capture.buffer.offer(exchange(f"r{number}"))
    until(lambda: capture.counters["written"] == 30)
    assert sorted(capture.rows()) == sorted(f"r{number}" for number in range(10) for _ in range(3))
    assert capture.writer.stop(seconds=5)


def test_what_is_left_at_the_end_is_written(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    for number in range(3):
        capture.buffer.offer(exchange(f"r{number}"))
    capture.writer.start()
    assert capture.writer.stop(seconds=5)
    assert len(capture.rows()) == capture.counters["written"] == 9
    assert not capture.writer.is_alive()


@pytest.mark.parametrize(
    "bad",
    [
        exchange("bad", lane=""),
        exchange("bad", lane="%UPSTREAM%"),
        exchange("bad", message=Message({}, b"{}")),
        exchange("bad", message=Message({"content-type": "application/grpc"}, b"\0\0\0\0\3abc")),
        exchange("bad", message=Message({}, b"[" * 100_000)),
    ],
)
def test_what_cannot_be_read_is_counted_and_the_rest_written(tmp_path: Path, bad: object) -> None:
    capture = Capture(tmp_path)
    for each in (exchange("r1"), bad, exchange("r2")):
        capture.buffer.offer(each)  # type: ignore[arg-type]
    capture.writer.start()
    assert capture.writer.stop(seconds=5)
    assert capture.counters["unreadable"] == 1
    assert set(capture.rows()) == {"r1", "r2"}


def test_a_store_that_comes_back_gets_everything(tmp_path: Path) -> None:
    capture = Capture(tmp_path, down_for=1)
    capture.writer.start()
    capture.buffer.offer(exchange("r1"))
    until(lambda: capture.counters["written"] == 3)
    assert (capture.counters["failed"], capture.counters["lost"]) == (1, 0)
    assert capture.rows() == ["r1"] * 3
    assert capture.writer.stop(seconds=5)


def test_meanwhile_the_buffer_fills_and_refuses(tmp_path: Path) -> None:
    capture = Capture(tmp_path, down_for=float("inf"))
    capture.writer.start()
    capture.buffer.offer(exchange("first"))
    assert capture.objects.tried.wait(5)
    taken_in = [capture.buffer.offer(exchange(f"r{number}")) for number in range(25)]
    assert sum(taken_in) == 20
    assert capture.writer.stop(seconds=5)
    assert capture.counters["lost"] == 3 * 21
    assert capture.rows() == []
