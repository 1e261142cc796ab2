"""Ingest: stream a delivered batch into a table with a row per image, decodable or not."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionloop import layout
from visionloop.data.formats import BatchReader, Context, open_batch
from visionloop.data.progress import tracked
from visionloop.data.rows import SCHEMA, record_batches, row
from visionloop.errors import DataError
from visionloop.project import Project
from visionloop.records import Frozen, Ingest, record_id
from visionloop.stores import Stores
from visionloop.stores.batches import StoredFiles, settle, unsettled
from visionloop.stores.tables import workspace, write_table

log = logging.getLogger(__name__)


class Inputs(Frozen):
    """What to ingest."""

    batch: str


def run(project: Project, inputs: Inputs, stores: Stores) -> Ingest:
    """Read every file of the batch once. Raises DataError where the batch as a whole cannot be read.

    Such a batch is set aside: it waits no longer, until its marker is written again or a run names it.
    """
    with workspace(stores.settings.home) as folder:
        files = StoredFiles(stores.objects, project.name, inputs.batch, folder / "incoming")
        found = record_id(
            Ingest.kind,
            project.name,
            batch=inputs.batch,
            files=files.digest,
            delivery=files.delivery,
            config=project.config_digest("task", "data"),
        )
        known = stores.ledger.find(Ingest, project.name, found)
        if known:
            return known
        try:
            return stores.ledger.put(_ingested(project, files, found, stores, folder))
        except DataError as error:
            if files.delivery:
                log.error("batch %s is set aside until it is delivered again", inputs.batch)
                settle(stores.objects, project.name, inputs.batch, files.delivery, f"unreadable: {error}")
            raise


def waiting(project: Project, stores: Stores) -> list[str]:
    """Batches that are complete and neither in a snapshot nor refused nor unreadable, the oldest delivery first."""
    return unsettled(stores.objects, project.name)


def _ingested(project: Project, files: StoredFiles, found: str, stores: Stores, folder: Path) -> Ingest:
    files.check_complete()
    context = Context(tuple(project.task.classes), project.data.contract.max_side)
    reader = open_batch(files, context, project.data.format)
    log.info("batch %s: %d images as %s", files.batch, reader.total, reader.format)
    counts: Counter[str] = Counter()
    key = layout.artifact(project.name, Ingest.kind, found, "table")
    table_uri = write_table(stores.objects, key, SCHEMA, record_batches(_rows(project, reader, counts)), folder)
    decoded = counts.pop("", 0)
    return Ingest(
        id=found,
        project=project.name,
        inputs={"batch": stores.objects.uri(layout.incoming(project.name, files.batch))},
        input_digests={"batch": files.digest, "delivery": files.delivery},
        config_digest=project.config_digest("task", "data"),
        batch=files.batch,
        format=reader.format,
        table_uri=table_uri,
        delivered=decoded + counts.total(),
        decoded=decoded,
        undecodable=dict(sorted(counts.items())),
    )


def _rows(project: Project, reader: BatchReader, counts: "Counter[str]") -> Iterator[dict[str, Any]]:
    """Rows of the table; `counts` counts reasons, with "" for what could be decoded."""
    max_side, group_by = project.data.contract.max_side, project.data.splits.group_by
    for item in tracked(reader, total=reader.total, what=f"{project.name}: images ingested", log=log):
        made = row(item, max_side=max_side, group_by=group_by)
        counts[made.get("error", "")] += 1
        yield made
