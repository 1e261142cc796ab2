"""The append-only book of records: each written once under its id, none ever changed."""

import hashlib
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

from pydantic import ValidationError

from visionloop import layout
from visionloop.errors import Conflict, IntegrityError, NotFound
from visionloop.records import RECORD_TYPES, Record
from visionloop.stores.objects import Objects

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

CLOCK_GRAIN = timedelta(seconds=5)
"""Object stores give times in whole seconds and clocks differ: records this near are compared by their own time."""


class Ledger:
    """Reads and appends records of any project."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def put(self, record: R) -> R:
        """Append a record, or return the one that was there first under the same id."""
        key = layout.record(record.project, record.kind, record.id)
        try:
            uri = self._objects.put_new(key, record.model_dump_json(indent=1).encode(), "application/json")
        except Conflict:
            return self.get(type(record), self._objects.uri(key))
        log.info("recorded %s %s", record.kind, uri)
        return record

    def find(self, kind: type[R], project: str, record_id: str) -> R | None:
        """The record with this id, or None."""
        try:
            return self.get(kind, self._objects.uri(layout.record(project, kind.kind, record_id)))
        except NotFound:
            return None

    def get(self, kind: type[R], uri: str) -> R:
        """Read the record at a URI. Raises NotFound, or IntegrityError when it is not what its name says."""
        try:
            record = kind.model_validate_json(self._objects.get(self._objects.key(uri)))
        except ValidationError as error:
            raise IntegrityError(f"{uri} is no {kind.kind} record of this version: {error}") from None
        if uri != self.uri(record):
            raise IntegrityError(f"{uri} holds the {record.kind} record {record.id} of project {record.project}")
        return record

    def read(self, uri: str) -> Record:
        """Read a record of whatever kind its URI names."""
        kind = uri.rsplit("/", 2)[-2]
        if kind not in RECORD_TYPES:
            raise IntegrityError(f"{uri} names no kind of record; known: {', '.join(RECORD_TYPES)}")
        return self.get(RECORD_TYPES[kind], uri)

    def uri(self, record: Record) -> str:
        """Where a record lies."""
        return self._objects.uri(layout.record(record.project, record.kind, record.id))

    def digests(self, uris: Mapping[str, str]) -> dict[str, str]:
        """SHA-256 of the bytes of each record, by its role: a new record's `input_digests`."""
        read = {role: self._objects.get(self._objects.key(uri)) for role, uri in uris.items()}
        return {role: hashlib.sha256(data).hexdigest() for role, data in read.items()}

    def all(self, kind: type[R], project: str) -> list[R]:
        """Every record of a kind, oldest first."""
        listed = self._objects.scan(layout.records(project, kind.kind))
        found = [self.get(kind, self._objects.uri(item.key)) for item in listed]
        return sorted(found, key=lambda record: record.created_at)

    def latest(self, kind: type[R], project: str) -> R | None:
        """The newest record of a kind, or None."""
        listed = list(self._objects.scan(layout.records(project, kind.kind)))
        if not listed:
            return None
        newest = max(item.modified for item in listed)
        recent = (item for item in listed if newest - item.modified <= CLOCK_GRAIN)
        return max((self.get(kind, self._objects.uri(item.key)) for item in recent), key=lambda r: r.created_at)
