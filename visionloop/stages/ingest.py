"""Ingest: stream a delivered batch into a table with a row per image, decodable or not."""

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from visionloop import layout
from visionloop.data.formats import BatchReader, Context, open_batch
from visionloop.data.progress import tracked
from visionloop.data.rows import SCHEMA, record_batches, row
from visionloop.project import Project
from visionloop.records import Frozen, Ingest, Snapshot, Validation, record_id
from visionloop.stores import Stores
from visionloop.stores.batches import StoredFiles
from visionloop.stores.tables import workspace, write_table

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """What to ingest."""

    batch: str


def run(project: Project, inputs: Inputs, stores: Stores) -> Ingest:
    """Read every file of the batch once. Raises DataError where the batch as a whole cannot be read."""
    with workspace(stores.settings.home) as folder:
        files = StoredFiles(stores.objects, project.name, inputs.batch, folder / "incoming")
        files.check_complete()
        made_from = {"delivery": files.digest, "config": project.config_digest("task", "data")}
        found = record_id(Ingest.kind, project.name, batch=inputs.batch, **made_from)
        known = stores.ledger.find(Ingest, project.name, found)
        if known:
            return known
        context = Context(tuple(project.task.classes), project.data.contract.max_side)
        reader = open_batch(files, context, project.data.format)
        log.info("batch %s: %d images as %s", inputs.batch, reader.total, reader.format)
        counts: Counter[str] = Counter()
        key = layout.artifact(project.name, Ingest.kind, found, "table")
        rows = record_batches(_rows(project, reader, counts))
        table_uri = write_table(stores.objects, key, SCHEMA, rows, folder)
    decoded = counts.pop("", 0)
    record = Ingest(
        id=found,
        project=project.name,
        inputs={"batch": stores.objects.uri(layout.incoming(project.name, inputs.batch))},
        input_digests={"batch": files.digest},
        config_digest=made_from["config"],
        batch=inputs.batch,
        format=reader.format,
        table_uri=table_uri,
        delivered=decoded + counts.total(),
        decoded=decoded,
        undecodable=dict(sorted(counts.items())),
    )
    return stores.ledger.put(record)


def waiting(project: Project, stores: Stores) -> list[str]:
    """Batches that are complete and neither in a snapshot nor refused since, the oldest delivery first."""
    delivered = _delivered(project, stores)
    settled: dict[str, datetime] = {}
    for validation in stores.ledger.all(Validation, project.name):
        if validation.outcome == "refused":
            settled[validation.batch] = validation.created_at
    for snapshot in stores.ledger.all(Snapshot, project.name):
        batch = stores.ledger.get(Validation, snapshot.inputs["validation"]).batch
        settled[batch] = max(snapshot.created_at, settled.get(batch, snapshot.created_at))
    return [batch for at, batch in delivered if batch not in settled or settled[batch] < at]


def _delivered(project: Project, stores: Stores) -> list[tuple[datetime, str]]:
    """When each complete batch was complete."""
    found = []
    for batch in stores.objects.folders(layout.incoming(project.name)):
        key = layout.ready(project.name, batch)
        found += [(item.modified, batch) for item in stores.objects.scan(key) if item.key == key]
    return sorted(found)


def _rows(project: Project, reader: BatchReader, counts: "Counter[str]") -> Iterator[dict[str, Any]]:
    """Rows of the table; `counts` counts reasons, with "" for what could be decoded."""
    max_side, group_by = project.data.contract.max_side, project.data.splits.group_by
    for item in tracked(reader, total=reader.total, what=f"{project.name}: images ingested", log=log):
        made = row(item, max_side=max_side, group_by=group_by)
        counts[made.get("error", "")] += 1
        yield made
