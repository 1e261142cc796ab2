"""Say how far a long loop has come: rate and time left, now and then, in the log that a task shows."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY_SECONDS = 5.0


def tracked(items: Iterable[T], *, total: int, what: str, log: logging.Logger) -> Iterator[T]:
    """Yield the items; log `what` every few seconds and at the end."""
    start = told = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= EVERY_SECONDS:
            told = now
            rate = done / (now - start)
            log.info("%s: %d of %d, %.0f a second, %.0f s left", what, done, total, rate, max(0, total - done) / rate)
    seconds = time.monotonic() - start
    log.info("%s: all %d in %.1f s, %.0f a second", what, done, seconds, done / max(seconds, 1e-9))
