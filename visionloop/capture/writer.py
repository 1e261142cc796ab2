"""The thread that reads captured bodies and writes them; a store that is down costs rows, never requests."""

import io
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow.parquet as pq

from visionloop.capture.buffer import Buffer
from visionloop.capture.counters import Counters
from visionloop.capture.exchange import Exchange
from visionloop.capture.rows import CaptureFile, make_files
from visionloop.errors import ConfigError, DataError, StoreError
from visionloop.serving.kserve import Inference, read_inference
from visionloop.stores.objects import Objects

log = logging.getLogger(__name__)

LARGEST_BATCH = 512
FLUSH_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 10.0


class Writer:
    """Takes from the buffer until it is stopped, then writes what is left."""

    def __init__(
        self,
        buffer: Buffer,
        objects: Objects,
        counters: Counters,
        *,
        image_share: Callable[[str], float],
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._buffer, self._objects, self._counters = buffer, objects, counters
        self._image_share = image_share
        self._flush_seconds = flush_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def is_alive(self) -> bool:
        """False before it began, after its end, and when a fault ended it: then nothing is written any more."""
        return self._thread.is_alive()

    def stop(self, *, seconds: float) -> bool:
        """Write what is left, within this time; False when something had to be given up."""
        self._ending.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            ending = self._ending.is_set()
            wait = 0.0 if ending else self._flush_seconds
            taken = self._buffer.take_many(largest=LARGEST_BATCH, seconds=wait)
            if taken:
                self._write_all(taken)
            elif ending:
                return

    def _write_all(self, exchanges: list[Exchange]) -> None:
        read = [(exchange, found) for exchange in exchanges if (found := self._read(exchange))]
        try:
            files = make_files(read, now=datetime.now(UTC), image_share=self._image_share)
        except ConfigError as error:  # a model whose name is no project's cannot be one of ours
            self._counters.add("unreadable", len(read))
            log.warning("%d captured requests have no place: %s", len(read), error)
            return
        for file in files:
            self._write(file)

    def _read(self, exchange: Exchange) -> Inference | None:
        try:
            if not exchange.lane.isalpha():
                raise DataError("no lane answered")
            return read_inference(*exchange.messages())
        except DataError as error:
            self._counters.add("unreadable")
            log.debug("request %s: %s", exchange.request_id, error)
            return None

    def _write(self, file: CaptureFile) -> None:
        """Try until it is written or the service ends; meanwhile the buffer fills, and then drops."""
        body = io.BytesIO()
        pq.write_table(file.table, body, compression="zstd")
        pause = 0.5
        while True:
            try:
                self._objects.put(file.key, body.getvalue())
            except (StoreError, OSError) as error:
                self._counters.add("failed")
                log.warning("capture %s is not written yet: %s", file.key, error)
                if self._ending.wait(pause):
                    self._counters.add("lost", file.table.num_rows)
                    return
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            self._counters.add("written", file.table.num_rows)
            self._counters.add("written_bytes", body.tell())
            self._counters.add_labelled(
                "images", file.table.num_rows, model=file.model, lane=file.lane, version=str(file.version)
            )
            return
