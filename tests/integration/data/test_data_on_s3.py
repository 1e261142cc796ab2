"""The data's way on a real S3 server: batch -> table -> verdict -> snapshot, with conditional writes and versions."""

import threading
from pathlib import Path

import pytest

from tests.unit.data.deliveries import deliver, folder_batch, idx_batch, png, sample_id, snapshotted, validated
from visionloop.demo import fashion
from visionloop.project import Project, load_project, parse_project, project_file
from visionloop.settings import Settings
from visionloop.stages import deliver as deliver_stage
from visionloop.stages import ingest, snapshot, validate
from visionloop.stores import Stores, connect

TEXT = """\
project: {name}
task: {{classes: [a, b], image: {{height: 8, width: 8, channels: 1}}}}
data: {{contract: {{min_samples: 2, max_quarantine_share: 0.5}}}}
suite: {{scenarios: [{{name: overall}}]}}
release: {{approval: automatic}}
"""


@pytest.fixture
def stores(s3_settings: Settings) -> Stores:
    return connect(s3_settings)


def project(name: str) -> Project:
    return parse_project(TEXT.format(name=name), Path("project.yaml"))


def test_the_example_through_the_three_stages(s3_settings: Settings, stores: Stores, tmp_path: Path) -> None:
    example = load_project(project_file(s3_settings.projects, "fashion"))
    images, labels = fashion.clean("train", 0, 3000)
    folder = fashion.write_idx(tmp_path / "first", images, labels, metadata={"camera": "belt-1"})
    delivery = deliver_stage.run(example, deliver_stage.Inputs(folder=folder), stores)
    assert ingest.waiting(example, stores) == [delivery.batch]
    first = ingest.run(example, ingest.Inputs(batch=delivery.batch), stores)
    second = validate.run(example, validate.Inputs(ingest=stores.ledger.uri(first)), stores)
    third = snapshot.run(example, snapshot.Inputs(validation=stores.ledger.uri(second)), stores)
    assert (first.delivered, second.accepted + second.quarantined, third.samples) == (3000, 3000, second.accepted)
    assert second.quarantined < 10
    assert ingest.waiting(example, stores) == []
    assert third.batches == [delivery.batch] and set(third.classes) == set(fashion.CLASSES)
    table = stores.datasets.read(third, split="test", columns=["image", "label", "metadata", "split"])
    assert table.num_rows == third.splits["test"] > 300
    assert set(table["metadata"].to_pylist()) == {'{"camera": "belt-1"}'}
    assert snapshot.run(example, snapshot.Inputs(validation=stores.ledger.uri(second)), stores) == third


def test_batches_at_the_same_time(stores: Stores) -> None:
    """Two overlapping batches enter at once: every image once, two snapshots, both readable."""
    made = project("at-once")
    batches = {"one": folder_batch(60), "two": folder_batch(60, first=40)}
    uris = {}
    for batch, files in batches.items():
        for name, data in files.items():
            stores.objects.put(f"at-once/incoming/{batch}/{name}", data)
        stores.objects.put(f"at-once/incoming/{batch}/_SUCCESS", b"")
        uris[batch] = stores.ledger.uri(validated(made, stores, batch))
    done = []

    def run(uri: str) -> None:
        done.append(snapshot.run(made, snapshot.Inputs(validation=uri), connect(stores.settings)))

    threads = [threading.Thread(target=run, args=(uri,)) for uri in [*uris.values(), *uris.values()]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.id for record in done}) == 2
    newest = max(done, key=lambda record: record.version)
    found = stores.datasets.read(newest, columns=["sample_id"])["sample_id"].to_pylist()
    assert sorted(found) == sorted(sample_id(png(seed)) for seed in range(100))
    assert sum({record.id: record.added for record in done}.values()) == 100


def test_quarantine_and_refusal(stores: Stores) -> None:
    made = project("p")
    deliver(folder_batch(10) | {"a/cut.png": png(50)[:60]}, stores, "with-fault")
    record = validated(made, stores, "with-fault")
    assert (record.outcome, record.accepted, record.reasons) == ("accepted", 10, {"truncated": 1})
    kept = [item.key for item in stores.objects.scan("p/quarantine/with-fault/")]
    assert [key.rsplit("/", 1)[1] for key in kept] == [f"{sample_id(png(50)[:60])}.png", "reasons.jsonl"]
    assert snapshotted(made, stores, "with-fault").added == 10
    deliver(idx_batch(10, first=200), stores, "idx")
    assert snapshotted(made, stores, "idx").samples == 20
