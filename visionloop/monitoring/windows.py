"""Which captured files make the next window: oldest first, of one model version, none counted twice. Pure and light.

A capture's key says all that is needed: `.../version=V/lane=L/hour=YYYYMMDDHH/<utc ms>-<uuid>-n<rows>.parquet`.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from visionloop.errors import DataError
from visionloop.serving.envoy_capture import SHADOW

KEY = re.compile(
    r"version=(?P<version>\d+)/lane=(?P<lane>[a-z]+)/hour=\d{10}/(?P<at_ms>\d+)-(?P<unique>[0-9a-fA-F-]+)-n(?P<rows>\d+)\.parquet$"
)


@dataclass(frozen=True)
class Capture:
    """One captured file, as its key describes it."""

    key: str
    version: int
    lane: str
    at_ms: int
    """UTC, milliseconds since 1970."""
    rows: int


def parse_capture(key: str) -> Capture | None:
    """Read a capture's key; None for an object that is no capture (a file still being written, a foreign one)."""
    found = KEY.search(key)
    if not found:
        return None
    return Capture(key, int(found["version"]), found["lane"], int(found["at_ms"]), int(found["rows"]))


def waiting(
    keys: Iterable[str], *, consumed: Collection[str], version: int, since: datetime | None = None
) -> list[Capture]:
    """Captures of this version that no window has counted yet, oldest first; with `since`, none from before it.

    Mirrored requests are left out: they are captured once more, as what was answered.
    """
    seen = frozenset(consumed)
    since_ms = since.timestamp() * 1000 if since else 0
    captures = (parse_capture(key) for key in keys if key not in seen)
    served = (capture for capture in captures if capture and capture.lane != SHADOW)
    mine = (capture for capture in served if capture.version == version and capture.rows > 0)
    return sorted((c for c in mine if c.at_ms >= since_ms), key=lambda capture: (capture.at_ms, capture.key))


def next_window(captures: Iterable[Capture], *, window_samples: int, image_share: float) -> list[str]:
    """Keys of the next window, of captures as `waiting` gives them; empty while they are too few.

    `image_share` is the share of captured rows that keep their image: only those can be compared, so a window asks
    for `window_samples / image_share` rows.
    """
    if image_share <= 0.0:
        return []
    wanted = ceil(window_samples / image_share)
    taken: list[str] = []
    rows = 0
    for capture in captures:
        taken.append(capture.key)
        rows += capture.rows
        if rows >= wanted:
            return taken
    return []


def common_version(keys: Iterable[str]) -> int:
    """The one model version that all captures are of. Raises DataError for none, several, or a key that is none."""
    captures = {key: parse_capture(key) for key in keys}
    strange = sorted(key for key, capture in captures.items() if capture is None)
    if strange:
        raise DataError(f"{strange[0]} is no capture: expected .../version=V/lane=L/hour=H/<ms>-<id>-n<rows>.parquet")
    versions = sorted({capture.version for capture in captures.values() if capture})
    if len(versions) != 1:
        raise DataError(f"a window holds captures of exactly one model version, found {versions or 'no capture'}")
    return versions[0]
