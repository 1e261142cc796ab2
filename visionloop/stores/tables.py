"""Tables of artifacts as Parquet parts below one prefix: written and read as streams, each part whole or absent."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from visionloop.stores.batches import patiently
from visionloop.stores.objects import Objects

PART_BYTES = 128 << 20
"""Bytes of Arrow data in one part: the bound on local disk that writing and reading need."""


@contextmanager
def workspace(home: Path) -> Iterator[Path]:
    """A folder below the run's own that is gone afterwards."""
    parent = home / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_table(objects: Objects, key: str, schema: pa.Schema, rows: Iterable[pa.RecordBatch], folder: Path) -> str:
    """Write `<key>/part-00000.parquet` and so on, over what a killed try left there; returns the table's URI."""
    written = []
    for number, batches in enumerate(_parts(rows)):
        part = f"{key}/part-{number:05d}.parquet"
        path = folder / "part.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_repeating(schema)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        patiently(lambda part=part, path=path: objects.upload(path, part))  # type: ignore[misc]
        written.append(part)
    for item in list(objects.scan(f"{key}/")):
        if item.key not in written:
            objects.delete(item.key)
    return objects.uri(key)


def read_table(
    objects: Objects, uri: str, folder: Path, *, columns: Sequence[str] | None = None, rows: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Stream a table's rows in the order in which they were written."""
    parts = [item.key for item in objects.scan(f"{objects.key(uri)}/")]
    for part in parts:
        path = folder / f"read-{Path(part).name}"
        patiently(lambda part=part, path=path: objects.download(part, path))  # type: ignore[misc]
        with pq.ParquetFile(path) as parquet:
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns) if columns else None)
        path.unlink()


def _parts(rows: Iterable[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Cut a stream of record batches into parts of PART_BYTES, without holding a part in memory."""
    stream = iter(rows)
    for first in stream:
        yield _part(first, stream)


def _part(first: pa.RecordBatch, stream: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    size = first.nbytes
    yield first
    while size < PART_BYTES:
        batch = next(stream, None)
        if batch is None:
            return
        size += batch.nbytes
        yield batch


def _repeating(schema: pa.Schema) -> list[str]:
    """Columns whose values repeat, for which a dictionary pays."""
    return [name for name in ("label", "group", "metadata", "error", "detail", "reason") if name in schema.names]
