"""Monitor: is there enough new traffic (`ready`), gather it (`window`), compare it with the reference (`drift`).

`ready` is light, an Airflow worker runs it; the other two import numpy, onnxruntime and Evidently when they are called.
No cursor is kept: what a window has consumed stands in its record.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionloop import layout
from visionloop.errors import ConfigError, DataError, NotFound, StageError
from visionloop.monitoring.champion import serving_release, serving_since
from visionloop.monitoring.windows import common_version, next_window, waiting
from visionloop.project import Project
from visionloop.records import Candidate, DriftReport, Frozen, Release, Snapshot, Window, record_id
from visionloop.stores import Stores

if TYPE_CHECKING:
    from visionloop.monitoring.drift import Comparison
    from visionloop.monitoring.gather import Gatherer
    from visionloop.monitoring.score import Scorer

log = logging.getLogger(__name__)
REFERENCE_FORMAT = 1
"""Raise it when image properties change their meaning: the cached reference of an older format is then not read."""
ROWS_AT_ONCE = 512
EXAMPLES = 12


class WindowInputs(Frozen):
    """Which traffic."""

    captures: list[str]
    """Keys of capture files, as `ready` lists them."""


class DriftInputs(Frozen):
    """What to compare with the reference."""

    window: str
    """URI of the `Window`."""


def ready(project: Project, stores: Stores) -> list[str]:
    """Keys of the captures that make the next window of the serving version; empty when there is not enough yet."""
    policy = project.monitoring
    if policy.capture_images == 0.0:
        raise ConfigError("monitoring.capture_images is 0, so no image can be compared: set it above 0")
    releases = stores.ledger.all(Release, project.name)
    release = serving_release(releases)
    if release is None:
        log.info("monitor of %s: no model is released yet", project.name)
        return []
    keys = [item.key for item in stores.objects.scan(f"{layout.captures(project.name)}version={release.version}/")]
    found = waiting(keys, consumed=_consumed(project, stores), version=release.version, since=serving_since(releases))
    captures = next_window(found, window_samples=policy.window_samples, image_share=policy.capture_images)
    rows = sum(capture.rows for capture in found)
    log.info("monitor of %s: %d samples of version %d wait", project.name, rows, release.version)
    log.info("a window has %d: %s", policy.window_samples, f"{len(captures)} captures" if captures else "not yet")
    return captures


def window(project: Project, inputs: WindowInputs, stores: Stores) -> Window:
    """Read the captures, measure every image, and write the window's table."""
    captures = sorted(inputs.captures)
    config = project.config_digest("task")
    window_id = record_id("window", project.name, captures=captures, config=config)
    found = stores.ledger.find(Window, project.name, window_id)
    if found:
        return found
    version = common_version(captures)
    doubled = sorted(set(captures) & _consumed(project, stores))
    if doubled:
        raise StageError(f"{doubled[0]} is in another window already, and no capture counts twice: list them again")
    from visionloop.stores.tables import workspace

    candidate = _candidate(project, stores, version)
    candidate_uri = stores.ledger.uri(candidate)
    table_key = layout.artifact(project.name, Window.kind, window_id, "window.parquet")
    with workspace(stores.settings.home) as folder:
        gathered = _gather(project, stores, captures, candidate, folder / "window.parquet")
        table_uri = stores.objects.upload(folder / "window.parquet", table_key)
    assert gathered.first_at
    assert gathered.last_at
    return stores.ledger.put(
        Window(
            id=window_id,
            project=project.name,
            inputs={"candidate": candidate_uri},
            input_digests=stores.ledger.digests({"candidate": candidate_uri}),
            config_digest=config,
            candidate=candidate_uri,
            version=version,
            first_at=gathered.first_at,
            last_at=gathered.last_at,
            samples=gathered.samples,
            table_uri=table_uri,
            captures=captures,
        )
    )


def drift(project: Project, inputs: DriftInputs, stores: Stores) -> DriftReport:
    """Compare a window with the champion's reference; write our page, Evidently's page and the figures."""
    config = project.config_digest("monitoring", "task")
    report_id = record_id("drift_report", project.name, window=inputs.window, config=config)
    found = stores.ledger.find(DriftReport, project.name, report_id)
    if found:
        return found
    from visionloop.monitoring.drift import compare
    from visionloop.stores.tables import workspace

    record = stores.ledger.get(Window, inputs.window)
    with workspace(stores.settings.home) as folder:
        reference, known_images = _reference(project, stores, _candidate(project, stores, record.version), folder)
        samples, images = _read_window(project, stores, record, folder)
    began = time.monotonic()
    comparison = compare(reference, samples, project.task.classes, project.monitoring)
    log.info("compared %d with %d samples in %.1f s", len(samples), len(reference.samples), time.monotonic() - began)
    uris = {"window": inputs.window, "candidate": record.candidate}
    report = DriftReport(
        id=report_id,
        project=project.name,
        inputs=uris,
        input_digests=stores.ledger.digests(uris),
        config_digest=config,
        window=inputs.window,
        candidate=record.candidate,
        reference_samples=len(comparison.match.rows),
        window_samples=len(samples),
        views=comparison.views,
        drifted=comparison.drifted,
        html_uri=stores.objects.uri(_page(project, report_id, "drift.html")),
        json_uri=stores.objects.uri(_page(project, report_id, "drift.json")),
    )
    _write_pages(project, stores, report, record, comparison, known_images, images)
    log.info("drift report %s: %s, AUC %.2f", report_id, "drift" if report.drifted else "no drift", comparison.auc)
    return stores.ledger.put(report)


def _consumed(project: Project, stores: Stores) -> set[str]:
    """Keys of the captures that some window holds."""
    return {key for record in stores.ledger.all(Window, project.name) for key in record.captures}


def _candidate(project: Project, stores: Stores, version: int) -> Candidate:
    """The candidate that was registered as this version."""
    found = [record for record in stores.ledger.all(Candidate, project.name) if record.version == version]
    if not found:
        raise NotFound(f"captures are of version {version} of {project.name}, but no candidate's record has it")
    return found[-1]


def _gather(project: Project, stores: Stores, captures: list[str], candidate: Candidate, path: Path) -> "Gatherer":
    """Write the window's table to `path`, a capture at a time."""
    import pyarrow.parquet as pq

    from visionloop.monitoring.gather import Gatherer

    gatherer = Gatherer(_scorer(stores, candidate), project.task.image, len(project.task.classes))
    writer: Any = None
    for number, key in enumerate(captures, 1):
        for rows in _captured(stores, key, path.parent / "capture.parquet"):
            table = gatherer.add(rows)
            if table is not None:
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table)
        log.info("window: %d of %d captures, %d samples", number, len(captures), gatherer.samples)
    if writer is None:
        image = project.task.image
        raise DataError(
            f"none of the {gatherer.skipped} captured rows has an image of {image.height} x {image.width} x "
            f"{image.channels} and an answer of {len(project.task.classes)} classes: is capture_images too small?"
        )
    writer.close()
    if gatherer.skipped:
        log.info("window: %d captured rows have no usable image", gatherer.skipped)
    if gatherer.skew > 0.02:
        log.warning("served probabilities differ by up to %.3f from the champion's own file", gatherer.skew)
    return gatherer


def _captured(stores: Stores, key: str, path: Path) -> Iterator[Any]:
    """The rows of a capture as tables of bounded size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from visionloop.monitoring.gather import CAPTURED

    stores.objects.download(key, path)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(CAPTURED)):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{stores.objects.uri(key)} is no capture file: {error}") from error


def _scorer(stores: Stores, candidate: Candidate) -> "Scorer":
    from visionloop.monitoring.score import Scorer

    model = candidate.artifacts["model.onnx"]
    return Scorer(stores.objects.get(stores.objects.key(model.uri)), candidate.model_sha256)


def _reference(project: Project, stores: Stores, candidate: Candidate, folder: Path) -> Any:
    """The champion's reference and the images kept of it by row; computed once a candidate, then read back."""
    import pyarrow.parquet as pq

    from visionloop.monitoring.drift import Reference
    from visionloop.monitoring.properties import property_names
    from visionloop.monitoring.samples import from_table

    key = layout.artifact(project.name, "reference", candidate.id, f"samples-v{REFERENCE_FORMAT}.parquet")
    snapshot = stores.ledger.get(Snapshot, candidate.snapshot)
    path = folder / "reference.parquet"
    if not stores.objects.exists(key):
        pq.write_table(_measure_reference(project, stores, snapshot, _scorer(stores, candidate)), path)
        stores.objects.upload(path, key)
    stores.objects.download(key, path)
    table = pq.read_table(path)
    images = {row: image for row, image in enumerate(table["image"].to_pylist()) if image is not None}
    samples = from_table(table, property_names(project.task.image.channels))
    return Reference(samples, table["batch"].to_numpy().astype(str), snapshot.batches), images


def _measure_reference(project: Project, stores: Stores, snapshot: Snapshot, scorer: "Scorer") -> Any:
    """Measure a stratified sample of what the champion was not trained on: the test and validation splits."""
    import numpy as np
    import pyarrow as pa

    from visionloop.data.images import decode_batch
    from visionloop.monitoring.examples import kept_images
    from visionloop.monitoring.reference import choose
    from visionloop.monitoring.samples import to_columns
    from visionloop.monitoring.score import measure

    facts = stores.datasets.read(snapshot, columns=["sample_id", "label", "batch", "split"])
    held_out = np.flatnonzero(facts["split"].to_numpy() != "train")
    labels, batches, ids = (facts[name].to_numpy()[held_out].astype(str) for name in ("label", "batch", "sample_id"))
    chosen = choose(labels, batches, ids)
    if not len(chosen):
        raise StageError(f"snapshot {snapshot.tag} has no test or validation samples to compare traffic with")
    keep = kept_images(batches[chosen])
    parts, began = [], time.monotonic()
    for at in range(0, len(chosen), ROWS_AT_ONCE):
        rows = held_out[chosen[at : at + ROWS_AT_ONCE]]
        taken = stores.datasets.take(snapshot, rows.tolist(), ["sample_id", "label", "batch", "image"])
        images = decode_batch(taken["image"].to_pylist(), project.task.image)
        shown = [image.tobytes() if at + i in keep else None for i, image in enumerate(images)]
        known = {name: taken[name] for name in ("sample_id", "label", "batch")}
        parts.append(pa.table(known | {"image": pa.array(shown, pa.binary())} | to_columns(measure(images, scorer))))
        rate = (at + len(rows)) / (time.monotonic() - began)
        left = (len(chosen) - at - len(rows)) / rate
        log.info("reference: %d of %d samples, %.0f/s, %.0f s left", at + len(rows), len(chosen), rate, left)
    return pa.concat_tables(parts)


def _read_window(project: Project, stores: Stores, record: Window, folder: Path) -> Any:
    """A window's samples and some of its images, spread over its time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from visionloop.monitoring.examples import spread
    from visionloop.monitoring.properties import property_names
    from visionloop.monitoring.samples import from_table
    from visionloop.serving.captured import to_images

    path = folder / "window.parquet"
    stores.objects.download(stores.objects.key(record.table_uri), path)
    names = property_names(project.task.image.channels)
    samples = from_table(pq.read_table(path, columns=[*names, "embedding", "probabilities"]), names)
    wanted, images, first = spread(len(samples), EXAMPLES), [], 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["image"]):
            here = [row - first for row in wanted if first <= row < first + len(batch)]
            images += list(to_images(batch.column("image").take(pa.array(here)), project.task.image)) if here else []
            first += len(batch)
    return samples, images


def _write_pages(
    project: Project,
    stores: Stores,
    report: DriftReport,
    record: Window,
    comparison: "Comparison",
    known_images: dict[int, bytes],
    window_images: list[Any],
) -> None:
    import pyarrow as pa

    from visionloop.monitoring.detail import to_json
    from visionloop.monitoring.examples import shown
    from visionloop.reports.drift import DriftPage, render
    from visionloop.serving.captured import to_images

    rows = shown(known_images, comparison.match.rows, EXAMPLES)
    known = to_images(pa.chunked_array([[known_images[row] for row in rows]], pa.binary()), project.task.image)
    page = DriftPage(
        project=project.name,
        version=record.version,
        report_id=report.id,
        created_at=report.created_at,
        first_at=record.first_at,
        last_at=record.last_at,
        window_samples=record.samples,
        reference_examples=list(known),
        window_examples=window_images,
        classes=project.task.classes,
        policy=project.monitoring,
    )
    about = {"project": project.name, "version": record.version, "window": report.window, "report": report.id}
    files = {
        "evidently.html": (comparison.evidently_html, "text/html; charset=utf-8"),
        "drift.json": (to_json(comparison, project.task.classes, **about), "application/json"),
        "drift.html": (render(page, comparison).encode(), "text/html; charset=utf-8"),
    }
    for name, (data, content_type) in files.items():
        stores.objects.put(_page(project, report.id, name), data, content_type)


def _page(project: Project, report_id: str, name: str) -> str:
    return layout.artifact(project.name, DriftReport.kind, report_id, name)
