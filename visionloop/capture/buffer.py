"""The bounded room between the endpoint's streams and the writer."""

import queue
import threading
import time

from visionloop.capture.exchange import Exchange

LARGEST_COUNT = 20_000
LARGEST_BYTES = 128 << 20


class Buffer:
    """First in, first out; full by count or by bytes, whichever comes first, and then it refuses."""

    def __init__(self, *, largest_count: int = LARGEST_COUNT, largest_bytes: int = LARGEST_BYTES) -> None:
        self._queue: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        self._count = self._bytes = 0
        self._largest_count, self._largest_bytes = largest_count, largest_bytes
        self._lock = threading.Lock()

    def offer(self, exchange: Exchange) -> bool:
        """Take it, or say False at once."""
        with self._lock:
            if self._count >= self._largest_count or self._bytes + exchange.size_bytes > self._largest_bytes:
                return False
            self._count += 1
            self._bytes += exchange.size_bytes
        self._queue.put(exchange)
        return True

    def take(self, *, seconds: float) -> Exchange | None:
        """The oldest, waiting so long for one; None when there is none."""
        try:
            exchange = self._queue.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        with self._lock:
            self._count -= 1
            self._bytes -= exchange.size_bytes
        return exchange

    def take_many(self, *, largest: int, seconds: float) -> list[Exchange]:
        """Up to `largest`, as many as come within `seconds` of the first one."""
        first = self.take(seconds=seconds)
        if first is None:
            return []
        taken, end = [first], time.monotonic() + seconds
        while len(taken) < largest:
            found = self.take(seconds=end - time.monotonic())
            if found is None:
                break
            taken.append(found)
        return taken
