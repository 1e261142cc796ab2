"""Snapshot: what was accepted is in the dataset once, in its split for ever, and killed anywhere it ends the same."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.data import deliveries
from tests.unit.data.deliveries import (
    deliver,
    folder_batch,
    idx_batch,
    pixels,
    png,
    project,
    sample_id,
    snapshotted,
    validated,
)
from visionloop.data.images import decode
from visionloop.data.rows import VERDICT
from visionloop.errors import DataError
from visionloop.records import Snapshot
from visionloop.stages import ingest, snapshot
from visionloop.stores import Stores
from visionloop.stores.datasets import Appended, Datasets
from visionloop.stores.tables import read_table, write_table


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return deliveries.stores(tmp_path)


def rows(stores: Stores, record: Snapshot) -> dict[str, dict[str, object]]:
    found = stores.datasets.read(record).to_pylist()
    by_id = {row["sample_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def test_what_was_accepted_is_there_with_its_lineage(stores: Stores) -> None:
    files = folder_batch(40) | {"a/cut.png": png(99)[:50], "batch.json": b'{"metadata": {"camera": "c"}}'}
    deliver(files, stores)
    record = snapshotted(project(), stores)
    found = rows(stores, record)
    assert set(found) == {sample_id(png(seed)) for seed in range(40)}
    row = found[sample_id(png(7))]
    assert (row["label"], row["batch"], row["metadata"], row["image"]) == ("b", "one", '{"camera": "c"}', png(7))
    assert (row["height"], row["width"], row["channels"], row["group"]) == (8, 8, 1, "")
    assert (record.samples, record.added, record.batches) == (40, 40, ["one"])
    assert record.classes == {"a": 20, "b": 20} and sum(record.splits.values()) == 40
    assert set(record.inputs) == {"validation", "ingest"}
    assert stores.datasets.count(record, "train") == record.splits["train"]


def test_idx_pixels_survive(stores: Stores) -> None:
    deliver(idx_batch(6), stores)
    images = stores.datasets.read(snapshotted(project(), stores), columns=["image"])["image"].to_pylist()
    assert [(decode(image)[..., 0] == pixels(seed)).all() for seed, image in enumerate(images)] == [True] * 6


def test_the_same_batch_twice_adds_nothing(stores: Stores) -> None:
    deliver(folder_batch(10), stores)
    first = snapshotted(project(), stores)
    assert snapshotted(project(), stores) == first
    deliver(folder_batch(10), stores, "again")
    second = snapshotted(project(), stores, "again")
    assert (second.version, second.added, second.samples, second.batches) == (first.version, 0, 10, ["one"])


def test_an_image_delivered_twice_is_accepted_twice_and_added_once(stores: Stores) -> None:
    deliver(folder_batch(4) | {"a/copy.png": png(0)}, stores)
    assert validated(project(), stores).accepted == 5
    assert snapshotted(project(), stores).added == 4


def test_snapshots_grow_and_stay(stores: Stores) -> None:
    deliver(folder_batch(30), stores)
    first = snapshotted(project(), stores)
    splits = {key: row["split"] for key, row in rows(stores, first).items()}
    deliver(folder_batch(30, first=20), stores, "two")
    changed = project("splits: {group_by: null}", "splits: {train: 0.3, validation: 0.3, salt: other}")
    second = snapshotted(changed, stores, "two")
    assert (second.samples, second.added, second.batches) == (50, 20, ["one", "two"])
    later = rows(stores, second)
    assert {key: later[key]["split"] for key in splits} == splits
    assert set(rows(stores, first)) == set(splits)


def test_a_group_never_leaves_its_split(stores: Stores) -> None:
    def grouped(first: int) -> dict[str, bytes]:
        files = folder_batch(60, first=first)
        lines = [f"{name},g{int(name[2:5]) % 12}" for name in files]
        return files | {"metadata.csv": "\n".join(["file,scene", *lines]).encode()}

    deliver(grouped(0), stores)
    snapshotted(project("group_by: null", "group_by: scene"), stores)
    deliver(grouped(100), stores, "two")
    text = "group_by: scene, train: 0.2, validation: 0.2, salt: other"
    second = snapshotted(project("group_by: null", text), stores, "two")
    pairs = {(row["group"], row["split"]) for row in rows(stores, second).values()}
    assert len({group for group, _ in pairs}) == len(pairs) == 12


def test_a_refused_batch_makes_no_snapshot(stores: Stores) -> None:
    deliver(folder_batch(1), stores)
    with pytest.raises(DataError, match=r"batch one was refused \(enough samples: 1\): see .*contract\.html"):
        snapshotted(project(), stores)
    assert stores.datasets.version("p") == 0


@pytest.mark.parametrize("at", ["_try_append", "tag", "put"])
def test_killed_and_run_again(stores: Stores, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Right after the append, before it is named; after it is named; before the record."""
    deliver(folder_batch(10), stores)
    uri = stores.ledger.uri(validated(project(), stores))
    append = Datasets._try_append

    def killed(*arguments: object, **options: object) -> Appended:
        if at == "_try_append":
            append(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr({"put": type(stores.ledger)}.get(at, Datasets), at, killed)
        with pytest.raises(KeyboardInterrupt):
            snapshot.run(project(), snapshot.Inputs(validation=uri), stores)
    deliver(folder_batch(5, first=50), stores, "other")
    other = snapshotted(project(), stores, "other")
    record = snapshot.run(project(), snapshot.Inputs(validation=uri), stores)
    assert (record.samples, record.added, record.batches) == (10, 10, ["one"])
    assert record.version < other.version and other.samples == 15
    assert len(rows(stores, other)) == 15


def test_waiting_batches(stores: Stores) -> None:
    assert ingest.waiting(project(), stores) == []
    deliver(folder_batch(4), stores, "z-first")
    deliver(folder_batch(1, first=9), stores, "refused")
    deliver(folder_batch(4, first=5), stores, "arriving", complete=False)
    assert ingest.waiting(project(), stores) == ["z-first", "refused"]
    snapshotted(project(), stores, "z-first")
    assert ingest.waiting(project(), stores) == ["refused"]
    validated(project(), stores, "refused")
    assert ingest.waiting(project(), stores) == []
    deliver({}, stores, "refused")  # delivered anew
    assert ingest.waiting(project(), stores) == ["refused"]


def test_a_folder_that_is_no_name_keeps_nobody_waiting(stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    stores.objects.put("p/incoming/Photos Monday/_SUCCESS", b"")
    deliver(folder_batch(4), stores, "good")
    assert ingest.waiting(project(), stores) == ["good"]
    assert "'Photos Monday' cannot be a name" in caplog.text


def test_an_unreadable_batch_is_set_aside_until_it_is_delivered_again(stores: Stores) -> None:
    """It must not keep those behind it waiting for ever."""
    images, labels = idx_batch(4).items()
    deliver(dict([images]), stores, "a-half")
    deliver(folder_batch(4), stores, "b-whole")
    assert ingest.waiting(project(), stores) == ["a-half", "b-whole"]
    for _ in range(2):
        with pytest.raises(DataError, match="expected the file labels-idx1-ubyte"):
            snapshotted(project(), stores, "a-half")
    assert ingest.waiting(project(), stores) == ["b-whole"]
    deliver(dict([labels]), stores, "a-half")
    assert ingest.waiting(project(), stores) == ["b-whole", "a-half"]
    assert snapshotted(project(), stores, "a-half").added == 4
    assert ingest.waiting(project(), stores) == ["b-whole"]


def test_a_verdict_about_other_rows_is_refused(stores: Stores, tmp_path: Path) -> None:
    deliver(folder_batch(4), stores)
    record = validated(project(), stores)
    key = stores.objects.key(record.verdict_uri)
    table = pa.Table.from_batches(read_table(stores.objects, record.verdict_uri, tmp_path))
    write_table(stores.objects, key, VERDICT, table.slice(1).to_batches(), tmp_path)
    with pytest.raises(Exception, match="has 3 rows for 4 images"):
        snapshot.run(project(), snapshot.Inputs(validation=stores.ledger.uri(record)), stores)
    write_table(stores.objects, key, VERDICT, table.take([1, 0, 2, 3]).to_batches(), tmp_path)
    with pytest.raises(Exception, match="is not about the rows of"):
        snapshot.run(project(), snapshot.Inputs(validation=stores.ledger.uri(record)), stores)
    assert stores.datasets.tally("p", stores.datasets.version("p"), "batch") == {}
