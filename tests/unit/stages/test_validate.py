"""Validate: accepted + quarantined = delivered, and what is quarantined is kept with its reason."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.data import deliveries
from tests.unit.data.deliveries import (
    deliver,
    folder_batch,
    idx_batch,
    ingested,
    png,
    project,
    sample_id,
    snapshotted,
    validated,
)
from visionloop import layout
from visionloop.errors import IntegrityError
from visionloop.records import Validation
from visionloop.stores import Stores
from visionloop.stores.tables import read_table

FAULTS = {"a/cut.png": png(50)[:60], "zz/unknown.png": png(51), "a/text.txt": b"text", "loose.png": png(52)}


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return deliveries.stores(tmp_path)


def kept(stores: Stores, record: Validation) -> dict[str, dict[str, object]]:
    """Lines of `reasons.jsonl` by path."""
    key = f"{layout.quarantine('p', record.batch)}{record.id}/reasons.jsonl"
    lines = [json.loads(line) for line in stores.objects.get(key).decode().splitlines()]
    assert len({line["path"] for line in lines}) == len(lines)
    return {line["path"]: line for line in lines}


def test_faults_go_to_quarantine_with_their_bytes(stores: Stores, tmp_path: Path) -> None:
    deliver(folder_batch(10) | FAULTS, stores)
    record = validated(project(), stores)
    assert (record.outcome, record.delivered, record.accepted, record.quarantined) == ("accepted", 14, 10, 4)
    assert record.reasons == {"no_label": 1, "not_an_image": 1, "truncated": 1, "unknown_label": 1}
    lines = kept(stores, record)
    assert set(lines) == set(FAULTS)
    prefix = f"{layout.quarantine('p', 'one')}{record.id}/files/"
    for path, data in FAULTS.items():
        assert stores.objects.get(prefix + str(lines[path]["file"])) == data
    assert lines["zz/unknown.png"] == {
        "batch": "one", "path": "zz/unknown.png", "label": "zz", "reason": "unknown_label", "metadata": {},
        "sample_id": sample_id(png(51)), "file": sample_id(png(51)) + ".png",
        "detail": "label is zz, expected one of the 2 classes",
    }  # fmt: skip
    verdict = pa.Table.from_batches(read_table(stores.objects, record.verdict_uri, tmp_path)).to_pylist()
    assert {row["path"] for row in verdict if not row["accepted"]} == set(FAULTS)
    assert all(bool(row["reason"]) != row["accepted"] for row in verdict)
    page = stores.objects.get(stores.objects.key(record.report_uri)).decode()
    assert "p, batch one: <span class='accepted'>accepted" in page


def test_a_refused_batch_accepts_nothing_and_says_why(stores: Stores) -> None:
    deliver(folder_batch(2) | FAULTS, stores)
    record = validated(project(), stores)  # 4 of 6 is more than half
    assert (record.outcome, record.accepted, record.quarantined) == ("refused", 0, 6)
    assert record.reasons["batch_refused"] == 2
    failed = [check for check in record.checks if not check.passed and check.severity == "error"]
    assert [(check.name, check.observed) for check in failed] == [("clean enough", "0.666667")]
    assert set(kept(stores, record)) == set(FAULTS)
    assert stores.objects.exists("p/incoming/one/a/000.png")


def test_an_idx_label_without_a_class_is_quarantined(stores: Stores) -> None:
    deliver(idx_batch(4, labels=[0, 1, 2, 0]), stores)
    record = validated(project(), stores)
    assert record.reasons == {"unknown_label": 1}
    lines = kept(stores, record)
    assert lines["images-idx3-ubyte.gz/00000002.png"]["label"] == "2"


def test_the_same_inputs_are_the_same_record_and_quarantine(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(folder_batch(10) | FAULTS, stores)

    def killed(record: Validation) -> Validation:
        raise KeyboardInterrupt

    ingested(project(), stores)
    with monkeypatch.context() as patch:
        patch.setattr(stores.ledger, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            validated(project(), stores)
    before = [item.key for item in stores.objects.scan("p/")]
    record = validated(project(), stores)
    assert validated(project(), stores) == record
    after = [item.key for item in stores.objects.scan("p/")]
    assert set(after) - set(before) == {f"p/records/validation/{record.id}.json"}


def test_a_label_that_contradicts_the_dataset(stores: Stores) -> None:
    deliver(folder_batch(4), stores)
    snapshotted(project(), stores)
    deliver({"a/x.png": png(1), "a/y.png": png(0), "b/z.png": png(9)}, stores, "two")  # png(1) is known as b
    record = validated(project(), stores, "two")
    assert record.reasons == {"label_differs_from_dataset": 1}
    assert kept(stores, record)["a/x.png"]["detail"] == (
        "label_in_dataset is b, expected the label that the dataset has for this image"
    )


def test_rows_that_vanished_are_noticed(stores: Stores) -> None:
    deliver(folder_batch(4), stores)
    record = ingested(project(), stores)
    for item in list(stores.objects.scan(stores.objects.key(record.table_uri))):
        stores.objects.delete(item.key)
    with pytest.raises(IntegrityError, match=r"has 0 rows, its record says 4"):
        validated(project(), stores)
