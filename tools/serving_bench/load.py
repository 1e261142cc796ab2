"""A closed-loop load: so many connections, each sends its next request when the last is answered. Run as a process.

Reads one JSON object from standard input (`Load` below, `request` as base64), prints one to standard output. The whole
request is made beforehand and the answer is only counted, so that a request costs this process some 30 us.
"""

import asyncio
import base64
import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
CHUNKED, CHUNKS_END = b"transfer-encoding: chunked", b"0\r\n\r\n"


@dataclass
class Count:
    """What came back while it was timed, whenever sent: what is under way at the start makes up for the end's."""

    began: float = 0.0
    ends: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, request: bytes, count: Count, done: "asyncio.Future[None]") -> None:
        self._request, self._count, self._done = request, count, done
        self._buffer = bytearray()
        self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if answered(self._buffer):
            now = time.perf_counter()
            if self._count.began <= now <= self._count.ends:
                status = bytes(self._buffer[9:12])
                if status == b"200":
                    self._count.latencies_ms.append(1000 * (now - self._sent))
                else:
                    self._error(status.decode(errors="replace"))
            self._buffer.clear()
            if now < self._count.ends:
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._count.ends:
            self._error("connection lost")
        if not self._done.done():
            self._done.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def _error(self, kind: str) -> None:
        self._count.errors[kind] = self._count.errors.get(kind, 0) + 1


def answered(buffer: bytearray) -> bool:
    """Is the answer whole?"""
    end = buffer.find(HEAD_END)
    if end < 0:
        return False
    length = LENGTH.search(buffer, 0, end)
    if length:
        return len(buffer) >= end + 4 + int(length.group(1))
    return CHUNKED in buffer[:end].lower() and buffer.endswith(CHUNKS_END)


async def load(port: int, request: bytes, connections: int, warm_seconds: float, seconds: float) -> Count:
    """Ask for some time, the first part of it untimed."""
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    count = Count(began=start + warm_seconds, ends=start + warm_seconds + seconds)
    done = [loop.create_future() for _ in range(connections)]
    for future in done:
        await loop.create_connection(lambda future=future: Connection(request, count, future), "127.0.0.1", port)
    await asyncio.wait_for(asyncio.gather(*done), warm_seconds + seconds + 60)
    return count


def main() -> None:
    """One run."""
    asked = json.load(sys.stdin)
    request = base64.b64decode(asked.pop("request"))
    count = uvloop.run(load(request=request, **asked))
    times = sorted(count.latencies_ms)
    at = lambda share: round(times[min(len(times) - 1, int(share * len(times)))], 3) if times else None  # noqa: E731
    found = {"requests": len(times), "errors": count.errors, "p50_ms": at(0.5), "p99_ms": at(0.99)}
    print(json.dumps({**found, "seconds": asked["seconds"]}))


if __name__ == "__main__":
    main()
