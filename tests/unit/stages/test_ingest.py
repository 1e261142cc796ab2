"""Ingest: every delivered image is a row, whatever it is; the same delivery is the same record."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.data import deliveries
from tests.unit.data.deliveries import deliver, folder_batch, idx_batch, ingested, jpeg, pixels, png, project, sample_id
from visionloop import layout
from visionloop.data.images import encode_png
from visionloop.errors import ConfigError, DataError, StoreError
from visionloop.records import Ingest
from visionloop.stages import ingest
from visionloop.stores import Stores, tables
from visionloop.stores.tables import read_table


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    found = deliveries.stores(tmp_path)
    yield found
    left = found.settings.home / "tmp"
    assert not left.exists() or list(left.iterdir()) == []


def table(stores: Stores, record: Ingest, folder: Path) -> list[dict[str, object]]:
    return pa.Table.from_batches(read_table(stores.objects, record.table_uri, folder)).to_pylist()


def test_idx_becomes_rows_with_png(stores: Stores, tmp_path: Path) -> None:
    deliver({**idx_batch(5), "batch.json": b'{"metadata": {"camera": "belt-1"}}'}, stores)
    record = ingested(project(), stores)
    assert (record.format, record.delivered, record.decoded, record.undecodable) == ("idx", 5, 5, {})
    rows = table(stores, record, tmp_path)
    assert [row["label"] for row in rows] == ["a", "b", "a", "b", "a"]
    for seed, row in enumerate(rows):
        assert row["image"] == encode_png(pixels(seed))
        assert row["sample_id"] == sample_id(png(seed))
        assert row["brightness"] == pytest.approx(pixels(seed).mean())
        assert (row["height"], row["width"], row["channels"], row["error"]) == (8, 8, 1, None)
        assert json.loads(str(row["metadata"])) == {"camera": "belt-1"}


def test_files_are_kept_as_delivered_broken_or_not(stores: Stores, tmp_path: Path) -> None:
    files = {
        "a/0.jpg": jpeg(1), "a/1.jpg": jpeg(2)[:300], "b/2.png": png(3)[:60], "b/3.png": b"", "b/4.txt": b"text",
        "b/5.png": png(4, side=33), "zz/6.png": png(5), "7.png": png(6),
    }  # fmt: skip
    deliver(files, stores)
    record = ingested(project(), stores)
    assert (record.delivered, record.decoded) == (8, 3)
    assert record.undecodable == {"empty": 1, "not_an_image": 1, "too_large": 1, "truncated": 2}
    rows = {row["path"]: row for row in table(stores, record, tmp_path)}
    assert {path: row["image"] for path, row in rows.items()} == files
    assert rows["a/1.jpg"]["error"] == "truncated" and str(rows["a/1.jpg"]["detail"]).startswith("truncated: ")
    assert rows["b/5.png"]["detail"] == "too_large: 33 x 33 pixels, at most 32 a side are allowed"
    assert (rows["zz/6.png"]["label"], rows["7.png"]["label"]) == ("zz", None)
    assert rows["a/0.jpg"]["sample_id"] == sample_id(jpeg(1))


def test_idx_images_beyond_the_bound_are_no_samples(stores: Stores) -> None:
    deliver(idx_batch(3), stores)
    assert ingested(project("max_side: 32", "max_side: 8"), stores).undecodable == {}
    assert ingested(project("min_side: 8, max_side: 32", "max_side: 7"), stores).undecodable == {"too_large": 3}


def test_groups_come_from_metadata(stores: Stores, tmp_path: Path) -> None:
    deliver({**folder_batch(2), "metadata.csv": b"file,patient\na/000.png,p1\n"}, stores)
    rows = table(stores, ingested(project("group_by: null", "group_by: patient"), stores), tmp_path)
    assert [row["group"] for row in rows] == ["p1", ""]


def test_the_same_delivery_is_the_same_record(stores: Stores) -> None:
    deliver(folder_batch(4), stores)
    first = ingested(project(), stores)
    assert ingested(project(), stores) == first
    assert first.inputs["batch"] == stores.objects.uri("p/incoming/one/")
    deliver({"a/new.png": png(99)}, stores)
    second = ingested(project(), stores)
    assert second.id != first.id and second.delivered == 5


def test_killed_before_the_record_and_run_again(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(folder_batch(30), stores)
    monkeypatch.setattr(tables, "PART_BYTES", 1000)
    monkeypatch.setattr("visionloop.data.rows.ROWS", 4)

    def killed(record: Ingest) -> Ingest:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.ledger, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            ingested(project(), stores)
    parts = list(stores.objects.scan("p/artifacts/"))
    assert len(parts) > 3
    stores.objects.put(parts[-1].key.replace("part-", "part-9"), b"left by a try that cut the parts elsewhere")
    record = ingested(project(), stores)
    assert len(table(stores, record, tmp_path)) == record.delivered == 30
    assert [item.key for item in stores.objects.scan("p/artifacts/")] == [item.key for item in parts]


def test_an_answer_that_breaks_off_is_asked_for_again(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(folder_batch(6), stores)
    monkeypatch.setattr("visionloop.stores.batches.FIRST_PAUSE_SECONDS", 0.0)
    whole, broken = stores.objects.get, set()

    def breaks(key: str) -> bytes:
        if key.endswith(".png") and key not in broken:
            broken.add(key)
            raise StoreError("connection reset")
        return whole(key)

    monkeypatch.setattr(stores.objects, "get", breaks)
    assert ingested(project(), stores).decoded == 6
    assert len(broken) == 6


def test_patience_ends(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(folder_batch(2), stores)
    monkeypatch.setattr("visionloop.stores.batches.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("visionloop.stores.batches.PATIENCE_SECONDS", 0.1)

    def gone(key: str) -> bytes:
        raise StoreError("S3 at http://127.0.0.1:1 cannot be reached")

    monkeypatch.setattr(stores.objects, "get", gone)
    with pytest.raises(StoreError, match=r"S3 at http://127\.0\.0\.1:1 cannot be reached"):
        ingested(project(), stores)


@pytest.mark.parametrize(
    ("files", "complete", "message"),
    [
        ({}, False, "batch one does not exist: .*p/incoming/one/_SUCCESS"),
        ({"a/1.png": b"x"}, False, "batch one is still arriving: .*_SUCCESS is not there"),
        ({}, True, "batch one is empty: expected class folders"),
        ({"images-idx3-ubyte": b""}, True, "not their labels: expected the file labels-idx1-ubyte"),
    ],
)
def test_a_batch_that_is_none(stores: Stores, files: dict[str, bytes], complete: bool, message: str) -> None:
    deliver(files, stores, complete=complete)
    with pytest.raises(DataError, match=message):
        ingested(project(), stores)
    assert [item.key for item in stores.objects.scan("p/records/")] == []


def test_a_batch_that_lost_files_on_its_way(stores: Stores) -> None:
    deliver(folder_batch(3), stores, complete=False)
    stores.objects.put(layout.ready("p", "one"), b'{"files": 4}')
    with pytest.raises(DataError, match="not as it was delivered: 4 files were, 3 are there"):
        ingested(project(), stores)
    stores.objects.put(layout.ready("p", "one"), b'{"files": 3}')
    assert ingested(project(), stores).delivered == 3


def test_names_of_batches_are_checked(stores: Stores) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        ingest.run(project(), ingest.Inputs(batch="../other"), stores)
