"""Snapshot: append what a validation accepted to the project's dataset, and name the version that holds it."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from visionloop.data.progress import tracked
from visionloop.data.rows import VERDICT
from visionloop.data.splits import assign
from visionloop.errors import DataError, IntegrityError
from visionloop.project import Project, Splits
from visionloop.records import Check, Frozen, Ingest, Snapshot, Validation, record_id
from visionloop.stores import Stores
from visionloop.stores.batches import settle
from visionloop.stores.datasets import SCHEMA, Known
from visionloop.stores.tables import read_table, workspace

log = logging.getLogger(__name__)
ROWS = 1024
COPIED = ("sample_id", "label", "group", "image", "height", "width", "channels", "metadata")


class Inputs(Frozen):
    """What to add."""

    validation: str
    """URI of the `Validation` record."""


def run(project: Project, inputs: Inputs, stores: Stores) -> Snapshot:
    """Append once, however often this runs. Raises DataError for a validation that refused its batch."""
    validation = stores.ledger.get(Validation, inputs.validation)
    ingest = stores.ledger.get(Ingest, validation.inputs["ingest"])
    found = record_id(Snapshot.kind, project.name, validation=inputs.validation)
    record = stores.ledger.find(Snapshot, project.name, found)
    if record is None:
        record = stores.ledger.put(_taken(project, inputs.validation, validation, ingest, found, stores))
    delivery = ingest.input_digests["delivery"]
    settle(stores.objects, project.name, ingest.batch, delivery, f"snapshot: {stores.ledger.uri(record)}")
    return record


def _taken(
    project: Project, validation_uri: str, validation: Validation, ingest: Ingest, found: str, stores: Stores
) -> Snapshot:
    if validation.outcome == "refused":
        why = "; ".join(f"{check.name}: {check.observed}" for check in _refusals(validation))
        raise DataError(f"batch {validation.batch} was refused ({why}): see {validation.report_uri}")
    with workspace(stores.settings.home) as folder:
        appended = stores.datasets.append(
            project.name,
            lambda known: _rows(project.data.splits, ingest, validation, stores, folder, known),
            mark=found,
            since=int(validation.inputs["dataset"].rpartition("=")[2]),
        )
    tag = f"snapshot-{found}"
    version = stores.datasets.tag(project.name, tag, appended.version)
    classes = stores.datasets.tally(project.name, version, "label")
    log.info("snapshot %s: version %d, %d samples added", found, version, appended.added)
    inputs = {"validation": validation_uri, "ingest": validation.inputs["ingest"]}
    return Snapshot(
        id=found,
        project=project.name,
        inputs=inputs,
        input_digests=stores.ledger.digests(inputs),
        config_digest=project.config_digest("data"),
        dataset_uri=stores.datasets.uri(project.name),
        version=version,
        tag=tag,
        batches=list(stores.datasets.tally(project.name, version, "batch")),
        samples=sum(classes.values()),
        added=appended.added,
        splits=stores.datasets.tally(project.name, version, "split"),
        classes={name: classes.get(name, 0) for name in project.task.classes},
    )


def _refusals(validation: Validation) -> list[Check]:
    return [check for check in validation.checks if check.severity == "error" and not check.passed]


def _rows(
    splits: Splits, ingest: Ingest, validation: Validation, stores: Stores, folder: Path, known: Known
) -> Iterator[pa.RecordBatch]:
    """Accepted rows of the ingest table in the dataset's form."""
    verdict = pa.Table.from_batches(read_table(stores.objects, validation.verdict_uri, folder / "verdict"), VERDICT)
    if verdict.num_rows != ingest.delivered:
        raise IntegrityError(f"{validation.verdict_uri} has {verdict.num_rows} rows for {ingest.delivered} images")
    groups = dict(known.groups)
    tables = read_table(stores.objects, ingest.table_uri, folder / "table", columns=("path", *COPIED), rows=ROWS)
    at = 0
    for rows in tracked(tables, total=-(-ingest.delivered // ROWS), what=f"chunks of {ROWS} rows", log=log):
        about = verdict.slice(at, rows.num_rows).combine_chunks()
        at += rows.num_rows
        if rows.column("path").to_pylist() != about["path"].to_pylist():
            raise IntegrityError(f"{validation.verdict_uri} is not about the rows of {ingest.table_uri}")
        accepted = pa.array(about["accepted"].to_pylist(), pa.bool_())
        yield _dataset_rows(rows.filter(accepted), ingest.batch, splits, groups)


def _dataset_rows(rows: pa.RecordBatch, batch: str, splits: Splits, groups: dict[str, str]) -> pa.RecordBatch:
    pairs = zip(rows.column("sample_id").to_pylist(), rows.column("group").to_pylist(), strict=True)
    given = [assign(sample_id, group, splits, groups) for sample_id, group in pairs]
    made = {name: rows.column(name) for name in COPIED} | {
        "batch": pa.array([batch] * rows.num_rows, pa.string()),
        "split": pa.array(given, pa.string()),
        "added_at": pa.array([datetime.now(UTC)] * rows.num_rows, pa.timestamp("us", tz="UTC")),
    }
    return pa.RecordBatch.from_arrays([made[name] for name in SCHEMA.names], schema=SCHEMA)
