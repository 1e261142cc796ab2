"""The datasets: one Lance table of samples per project, versions, tags, and appends that never double a sample.

An append is a compare-and-swap: Lance refuses the commit when somebody else committed since the version that it was
prepared for, and it is then prepared again. The commit carries a mark (the snapshot's id), so that a process that
takes over after a crash finds what was written instead of writing it again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from visionloop import layout
from visionloop.errors import Conflict, DataError, NotFound, StoreError
from visionloop.records import Snapshot
from visionloop.stores.objects import Objects

log = logging.getLogger(__name__)

SplitName = Literal["train", "validation", "test"]
MARK = "visionloop.snapshot"
TRIES = 20
ROWS_PER_FILE = 262_144
# Two minutes of retries, bounded by the time and not by their number: the waits between them are drawn at random
# around 0.2 s and do not grow, so that 30 of them (Lance's default is fewer) can be over in 6 s.
PATIENCE = {"client_max_retries": "10000", "client_retry_timeout": "120", "connect_timeout": "5s", "timeout": "60s"}

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # SHA-256 of `image`, hex
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # "" = a group of its own
        pa.field("batch", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # the encoded file as delivered; IDX images as PNG
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),  # JSON object of strings
        pa.field("added_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True)
class Known:
    """What the dataset holds before an append: sample ids, and the split of each named group."""

    sample_ids: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Appended:
    """The version that holds the rows, and how many of them were new."""

    version: int
    added: int


Rows = Callable[[Known], Iterable[pa.RecordBatch]]
"""Makes the rows (of SCHEMA) to append; called again when the append has to be prepared again."""


class Datasets:
    """The Lance datasets below one object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def uri(self, project: str) -> str:
        """Where a project's dataset lies."""
        return self._objects.uri(layout.dataset(project))

    def version(self, project: str) -> int:
        """Newest version of a project's dataset, 0 when there is none yet."""
        dataset = self._latest(project)
        return 0 if dataset is None else int(dataset.version)

    def append(self, project: str, rows: Rows, *, mark: str, since: int) -> Appended:
        """Add the rows whose sample ids are new, once, however often this is called with the same `mark`.

        `since` is a version that existed before the first call with this mark. Raises Conflict when other writers
        won every time, StoreError when the store cannot be reached.
        """
        with self._speaking(project):
            dataset = self._latest(project)
            if dataset is None:  # never by truth: a Lance dataset without rows is false
                dataset = self._create(project)
            for _ in range(TRIES):
                done = _find(dataset, mark, since) or self._try_append(dataset, rows, mark)
                if done:
                    return done
                dataset = self._open(project)
        raise Conflict(f"{self.uri(project)}: other writers were faster {TRIES} times: try again")

    def tag(self, project: str, tag: str, version: int) -> int:
        """Name a version, once: returns the version that has the tag, which is another one if it was named before."""
        with self._speaking(project):
            tags = self._open(project).tags
            found = tags.list().get(tag)
            if found is None:
                tags.create(tag, version)
            return int(found["version"]) if found else version

    def read(
        self, snapshot: Snapshot, *, split: SplitName | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """A snapshot's rows as one table, always in the same order. Images are large: prefer `batches` for them."""
        return pa.Table.from_batches(self.batches(snapshot, split=split, columns=columns, rows=8192), _schema(columns))

    def batches(
        self,
        snapshot: Snapshot,
        *,
        split: SplitName | None = None,
        columns: Sequence[str] | None = None,
        rows: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a snapshot's rows, `rows` or fewer at a time, always in the same order."""
        with self._speaking(snapshot.project):
            scanner = self.open(snapshot).scanner(
                columns=list(columns or SCHEMA.names), filter=_of(split), batch_size=rows, scan_in_order=True
            )
            yield from scanner.to_batches()

    def pick(
        self, snapshot: Snapshot, rows: Iterable[int], *, split: SplitName, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream some rows of a split by number (0 is the split's first), in the split's order."""
        chosen, at = set(rows), 0
        for batch in self.batches(snapshot, split=split, columns=columns):
            keep = [at + offset in chosen for offset in range(batch.num_rows)]
            at += batch.num_rows
            if any(keep):
                yield batch.filter(pa.array(keep, pa.bool_()))

    def take(self, snapshot: Snapshot, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by number (0 is the first row of the snapshot, all splits counted), in the order asked for."""
        with self._speaking(snapshot.project):
            return self.open(snapshot).take(list(rows), columns=list(columns or SCHEMA.names))

    def count(self, snapshot: Snapshot, split: SplitName | None = None) -> int:
        """How many samples."""
        with self._speaking(snapshot.project):
            return int(self.open(snapshot).count_rows(filter=_of(split)))

    def tally(self, project: str, version: int, column: str) -> dict[str, int]:
        """Value -> number of samples, of one column at one version; values in the order of their first sample."""
        with self._speaking(project):
            found = self._open(project, version).to_table(columns=[column])[column].value_counts().to_pylist()
        return {item["values"]: item["counts"] for item in found}

    def labels(self, project: str, version: int, sample_ids: pa.Array) -> dict[str, str]:
        """Sample id -> label, for those of `sample_ids` that the dataset has at `version` (0: none)."""
        if not version:
            return {}
        with self._speaking(project):
            table = self._open(project, version).to_table(columns=["sample_id", "label"])
        table = table.filter(pc.is_in(table["sample_id"], value_set=sample_ids))
        return dict(zip(table["sample_id"].to_pylist(), table["label"].to_pylist(), strict=True))

    def open(self, snapshot: Snapshot) -> Any:
        """The `lance.LanceDataset` of a snapshot, for whoever needs more than this class offers."""
        return self._open(snapshot.project, snapshot.version)

    def _try_append(self, dataset: Any, rows: Rows, mark: str) -> Appended | None:
        """One attempt; None when somebody else committed in between."""
        known = _known(dataset)
        fresh = pa.RecordBatchReader.from_batches(SCHEMA, _fresh(rows(known), known.sample_ids))
        written = write_fragments(
            fresh, dataset, mode="append", max_rows_per_file=ROWS_PER_FILE, storage_options=self._options()
        )
        added = sum(fragment.physical_rows for fragment in written)
        if not added:
            return Appended(int(dataset.version), 0)
        try:
            # Append would be rebased on whatever came in between; Merge of old and new fragments is refused then.
            kept = [fragment.metadata for fragment in dataset.get_fragments()]
            merge = LanceOperation.Merge(kept + _numbered(written, kept), dataset.schema)
            wanted = lance.Transaction(
                read_version=dataset.version, operation=merge, transaction_properties={MARK: mark}
            )
            committed = lance.LanceDataset.commit(dataset, wanted, storage_options=self._options())
        except CommitConflictError as error:
            log.info("another append to %s came first, preparing again: %s", dataset.uri, error)
            return None
        return Appended(int(committed.version), added)

    def _create(self, project: str) -> Any:
        # Never `write_dataset(mode="create")`: it looks first, commits later and overwrites what came in between.
        # Without retries Lance refuses an overwrite of anything but the version that it was made for.
        empty = lance.Transaction(read_version=0, operation=LanceOperation.Overwrite(SCHEMA, []))
        try:
            return lance.LanceDataset.commit(self.uri(project), empty, max_retries=0, storage_options=self._options())
        except (OSError, ValueError, CommitConflictError):
            found = self._latest(project)  # somebody else was first
            if found is None:
                raise
            return found

    def _latest(self, project: str) -> Any | None:
        try:
            return self._open(project)
        except NotFound:
            return None

    def _open(self, project: str, version: int | None = None) -> Any:
        with self._speaking(project):
            return lance.dataset(self.uri(project), version=version, storage_options=self._options())

    def _options(self) -> dict[str, str]:
        return {**PATIENCE, **self._objects.storage_options()}

    @contextmanager
    def _speaking(self, project: str) -> Iterator[None]:
        try:
            yield
        except CommitConflictError:
            raise
        except (OSError, ValueError) as error:
            if "not found" in str(error).lower():
                raise NotFound(f"{self.uri(project)}: {error}") from error
            raise StoreError(f"the dataset {self.uri(project)} cannot be read or written: {error}") from error


def _find(dataset: Any, mark: str, since: int) -> Appended | None:
    """Look for the commit that carries the mark among the versions after `since`."""
    for version in range(int(dataset.version), since, -1):
        transaction = dataset.read_transaction(version)
        if transaction and (transaction.transaction_properties or {}).get(MARK) == mark:
            before = dataset.checkout_version(version - 1).count_rows()
            return Appended(version, int(dataset.checkout_version(version).count_rows()) - int(before))
    return None


def _known(dataset: Any) -> Known:
    table = dataset.to_table(columns=["sample_id"])
    groups = dataset.to_table(columns=["group", "split"], filter="`group` != ''")
    return Known(
        set(table["sample_id"].to_pylist()),
        dict(zip(groups["group"].to_pylist(), groups["split"].to_pylist(), strict=True)),
    )


def _fresh(batches: Iterable[pa.RecordBatch], known: set[str]) -> Iterator[pa.RecordBatch]:
    """Drop rows whose sample is in the dataset or came earlier in the same stream."""
    seen = set(known)
    for batch in batches:
        keep = []
        for sample_id in batch.column("sample_id").to_pylist():
            keep.append(sample_id not in seen)
            seen.add(sample_id)
        yield batch if all(keep) else batch.filter(pa.array(keep, pa.bool_()))


def _numbered(written: list[Any], kept: list[Any]) -> list[Any]:
    """Fragments come without numbers; a merge needs them above those in use."""
    start = max((fragment.id for fragment in kept), default=-1) + 1
    for number, fragment in enumerate(written, start):
        fragment.id = number
    return written


def _of(split: SplitName | None) -> str | None:
    if split not in (None, "train", "validation", "test"):
        raise DataError(f"no split {split!r}: expected train, validation or test")
    return None if split is None else f"split = '{split}'"


def _schema(columns: Sequence[str] | None) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
