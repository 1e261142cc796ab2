"""Delivered batches in the object store: their files, read so that an outage is only a delay, and which are settled."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from visionloop import layout
from visionloop.errors import ConfigError, Conflict, DataError, NotFound, StoreError
from visionloop.records import digest
from visionloop.stores.objects import ObjectInfo, Objects

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 4.0
LARGEST_MARKER_BYTES = 4096
"""A larger marker is no delivery note, and is not read."""


class StoredFiles:
    """A batch below the project's incoming prefix; `folder` takes local copies of files that are read as streams."""

    def __init__(self, objects: Objects, project: str, batch: str, folder: Path) -> None:
        self.batch = batch
        self._objects, self._folder = objects, folder
        self._prefix = layout.incoming(project, batch)
        listed = {item.key.removeprefix(self._prefix): item for item in objects.scan(self._prefix)}
        self._marker = listed.pop(layout.READY, None)
        self.sizes: Mapping[str, int] = {name: item.size_bytes for name, item in sorted(listed.items())}
        self.digest = digest([(name, item.size_bytes, item.modified) for name, item in sorted(listed.items())])
        """Changes when a file is added, taken away or replaced."""
        self.delivery = _delivery(self._marker) if self._marker else ""
        """Names this delivery of the batch: changes when the marker is written again."""

    def check_complete(self) -> None:
        """Raises DataError for a batch that is not there, is still arriving, or misses files of its delivery note."""
        if self._marker is None:
            state = "is still arriving" if self.sizes else "does not exist"
            raise DataError(
                f"batch {self.batch} {state}: {self._objects.uri(self._prefix + layout.READY)} is not there"
            )
        promised = _promised(self.read(layout.READY)) if self._marker.size_bytes <= LARGEST_MARKER_BYTES else None
        if promised is not None and promised != len(self.sizes):
            raise DataError(
                f"batch {self.batch} is not as it was delivered: {promised} files were, {len(self.sizes)} are there"
            )

    def read(self, name: str) -> bytes:
        """The whole file."""
        return patiently(lambda: self._objects.get(self._prefix + name))

    def open(self, name: str) -> BinaryIO:
        """A stream of a local copy, fetched once."""
        path = self._folder / hashlib.sha256(name.encode()).hexdigest()  # a name from outside is no path
        if not path.exists():
            patiently(lambda: self._objects.download(self._prefix + name, path))
        return path.open("rb")


def settle(objects: Objects, project: str, batch: str, delivery: str, why: str) -> None:
    """Note that a delivery needs no more work: it is in a snapshot, or refused, or cannot be read."""
    note = json.dumps({"why": why}).encode()
    patiently(lambda: objects.put(layout.settled(project, batch, delivery), note, "application/json"))


def unsettled(objects: Objects, project: str) -> list[str]:
    """Batches whose newest delivery is complete and not settled, the oldest delivery first."""
    settled = {item.key for item in objects.scan(layout.settled(project))}
    found = []
    for batch in objects.folders(layout.incoming(project)):
        try:
            key = layout.ready(project, batch)
        except ConfigError as error:
            log.warning("left alone below %s: %s", objects.uri(layout.incoming(project)), error)
            continue
        found += [(item.modified, batch, _delivery(item)) for item in objects.scan(key) if item.key == key]
    return [batch for _, batch, named in sorted(found) if layout.settled(project, batch, named) not in settled]


def patiently(work: Callable[[], T]) -> T:
    """Try again, for PATIENCE_SECONDS, while the store cannot be reached.

    Its client tries again by itself, but not when an answer breaks off in the middle, and boto3's retries share a
    quota that sixteen threads use up in a second.
    """
    ends = time.monotonic() + PATIENCE_SECONDS
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return work()
        except (NotFound, Conflict):
            raise
        except StoreError as error:
            if time.monotonic() + pause > ends:
                raise
            first = pause == FIRST_PAUSE_SECONDS
            log.log(logging.WARNING if first else logging.DEBUG, "trying again in %.1f s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _delivery(marker: ObjectInfo) -> str:
    return digest([marker.modified, marker.size_bytes])[:16]


def _promised(marker: bytes) -> int | None:
    """Number of files according to the marker, if whoever delivered wrote one there."""
    try:
        found = json.loads(marker)
    except ValueError:
        return None
    files = found.get("files") if isinstance(found, dict) else None
    return files if isinstance(files, int) else None
