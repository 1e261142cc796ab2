"""Validate: hold an ingested batch against the contract, keep what is refused in quarantine, and say why."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from visionloop import layout
from visionloop.data.contract import COLUMNS, Terms, Verdict, judge
from visionloop.data.quarantine import file_name, line
from visionloop.data.rows import SCHEMA, VERDICT
from visionloop.errors import IntegrityError
from visionloop.project import Project
from visionloop.records import Frozen, Ingest, Validation, record_id
from visionloop.stores import Stores
from visionloop.stores.batches import patiently, settle
from visionloop.stores.tables import read_table, workspace, write_table

log = logging.getLogger(__name__)
BATCH_REFUSED = "batch_refused"
"""Reason of samples that are well, in a batch that is not; their files stay where they were delivered."""
UPLOADS = 16
KEPT_COLUMNS = ("path", "sample_id", "label", "metadata", "detail", "image")


class Inputs(Frozen):
    """What to validate."""

    ingest: str
    """URI of the `Ingest` record."""


def run(project: Project, inputs: Inputs, stores: Stores) -> Validation:
    """Judge every sample, then the batch. A refusal is a result, not an error."""
    config = project.config_digest("task", "data")
    found = record_id(Validation.kind, project.name, ingest=inputs.ingest, config=config)
    ingest = stores.ledger.get(Ingest, inputs.ingest)
    record = stores.ledger.find(Validation, project.name, found)
    if record is None:
        record = stores.ledger.put(_validated(project, inputs.ingest, ingest, found, stores))
    if record.outcome == "refused":
        delivery = ingest.input_digests["delivery"]
        settle(stores.objects, project.name, ingest.batch, delivery, f"refused: {stores.ledger.uri(record)}")
    return record


def _validated(project: Project, ingest_uri: str, ingest: Ingest, found: str, stores: Stores) -> Validation:
    with workspace(stores.settings.home) as folder:
        table = _table(ingest, stores, folder)
        version = stores.datasets.version(project.name)
        verdict = judge(table, _terms(project, table, version, stores), title=f"{project.name}, batch {ingest.batch}")
        _quarantine(project, ingest, found, verdict, stores, folder)
        reasons = _final(verdict)
        verdict_uri = write_table(
            stores.objects,
            layout.artifact(project.name, Validation.kind, found, "verdict"),
            VERDICT,
            _verdict_rows(table, reasons, verdict.details),
            folder,
        )
    page = layout.artifact(project.name, Validation.kind, found, "contract.html")
    report_uri = stores.objects.put(page, verdict.html.encode(), "text/html; charset=utf-8")
    counts = Counter(reason for reason in reasons if reason)
    log.info("batch %s %s: %s of %d quarantined", ingest.batch, verdict.outcome, dict(counts), len(reasons))
    return Validation(
        id=found,
        project=project.name,
        inputs={"ingest": ingest_uri, "dataset": f"{stores.datasets.uri(project.name)}#version={version}"},
        input_digests=stores.ledger.digests({"ingest": ingest_uri}),
        config_digest=project.config_digest("task", "data"),
        batch=ingest.batch,
        outcome=verdict.outcome,
        delivered=len(reasons),
        accepted=len(reasons) - counts.total(),
        quarantined=counts.total(),
        reasons=dict(sorted(counts.items())),
        checks=verdict.checks,
        verdict_uri=verdict_uri,
        report_uri=report_uri,
    )


def _table(ingest: Ingest, stores: Stores, folder: Path) -> pa.Table:
    """The ingest table without images. Raises IntegrityError when rows are missing."""
    rows = read_table(stores.objects, ingest.table_uri, folder, columns=COLUMNS, rows=65_536)
    table = pa.Table.from_batches(rows, pa.schema([SCHEMA.field(name) for name in COLUMNS]))
    if table.num_rows != ingest.delivered:
        raise IntegrityError(f"{ingest.table_uri} has {table.num_rows} rows, its record says {ingest.delivered}")
    return table


def _terms(project: Project, table: pa.Table, version: int, stores: Stores) -> Terms:
    return Terms(
        contract=project.data.contract,
        classes=project.task.classes,
        group_by=project.data.splits.group_by,
        known_labels=stores.datasets.labels(project.name, version, table["sample_id"].combine_chunks()),
    )


def _final(verdict: Verdict) -> list[str]:
    if verdict.outcome == "accepted":
        return verdict.reasons
    return [own or BATCH_REFUSED for own in verdict.reasons]


def _verdict_rows(table: pa.Table, reasons: Sequence[str], details: Sequence[str]) -> list[pa.RecordBatch]:
    columns = [
        table["path"],
        table["sample_id"],
        pa.array([not reason for reason in reasons], pa.bool_()),
        pa.array(reasons, pa.string()),
        pa.array(details, pa.string()),
    ]
    rows: list[pa.RecordBatch] = pa.table(columns, schema=VERDICT).to_batches(max_chunksize=65_536)
    return rows


def _quarantine(project: Project, ingest: Ingest, found: str, verdict: Verdict, stores: Stores, folder: Path) -> None:
    """Keep each sample with a fault of its own, once however often this runs: its place is named by the record."""
    if not any(verdict.reasons):
        return
    prefix = f"{layout.quarantine(project.name, ingest.batch)}{found}/"
    lines: list[str] = []

    def keep(at: int, row: dict[str, Any]) -> str:
        file = file_name(row["path"], row["sample_id"], row["image"])
        if file:
            patiently(lambda: stores.objects.put(f"{prefix}files/{file}", row["image"]))
        return line(row, batch=ingest.batch, reason=verdict.reasons[at], detail=verdict.details[at], file=file)

    with ThreadPoolExecutor(UPLOADS, "quarantine") as pool:
        for chunk in _faulty(ingest, verdict, stores, folder):
            lines += pool.map(lambda numbered: keep(*numbered), chunk)
    stores.objects.put(f"{prefix}reasons.jsonl", "".join(lines).encode(), "application/x-ndjson")


def _faulty(
    ingest: Ingest, verdict: Verdict, stores: Stores, folder: Path
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Rows with a reason, with their numbers, a few at a time (images are large)."""
    at = 0
    for rows in read_table(stores.objects, ingest.table_uri, folder, columns=KEPT_COLUMNS, rows=256):
        wanted = [number for number in range(rows.num_rows) if verdict.reasons[at + number]]
        if wanted:
            yield [(at + number, row) for number, row in zip(wanted, rows.take(wanted).to_pylist(), strict=True)]
        at += rows.num_rows
