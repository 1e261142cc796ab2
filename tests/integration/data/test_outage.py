"""S3 gone for up to 20 s in the middle of each stage: the stage waits, the totals are the same, nothing is doubled."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.data.deliveries import deliver, folder_batch, idx_batch, ingested, project, sample_id, snapshotted
from visionloop.settings import Settings
from visionloop.stores import Stores, connect
from visionloop.stores.datasets import Datasets, Known

from .seaweed import BUCKET, Seaweed

GONE_SECONDS = {False: 20, True: 8}
"""Dead for as long as is promised; frozen, or at another line, for less: the way to wait is the same."""


@pytest.fixture(scope="module")
def server() -> Iterator[Seaweed]:
    folder = Path(tempfile.mkdtemp(prefix="vl-"))
    found = Seaweed(folder)
    try:
        found.start()
        found.make_bucket()
        yield found
    finally:
        found.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stores(server: Seaweed, tmp_path: Path) -> Stores:
    return connect(
        Settings(
            home=tmp_path,
            store=f"s3://{BUCKET}/{tmp_path.name.replace('_', '-')}",
            s3_endpoint=server.endpoint,
            s3_credentials=server.credentials,
        )
    )


def at_call(number: int, begin: Callable[[], threading.Thread], work: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """`work`, that begins an outage at its n-th call; and the outage, once it has begun."""
    begun: list[threading.Thread] = []
    calls, lock = [0], threading.Lock()

    def counted(*arguments: Any, **options: Any) -> Any:
        with lock:
            calls[0] += 1
            if calls[0] == number:
                begun.append(begin())
        return work(*arguments, **options)

    return counted, begun


@pytest.mark.parametrize("frozen", [False, True], ids=["dead", "frozen"])
def test_in_the_middle_of_ingest(
    server: Seaweed, stores: Stores, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    deliver(folder_batch(600), stores)
    get, begun = at_call(200, lambda: server.outage(GONE_SECONDS[frozen], frozen=frozen), stores.objects.get)
    monkeypatch.setattr(stores.objects, "get", get)
    record = ingested(project(), stores)
    begun[0].join()
    assert (record.delivered, record.decoded) == (600, 600)
    assert snapshotted(project(), stores).added == 600


def test_while_the_table_is_written(server: Seaweed, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(idx_batch(500), stores)
    upload, begun = at_call(1, lambda: server.outage(GONE_SECONDS[True]), stores.objects.upload)
    monkeypatch.setattr(stores.objects, "upload", upload)
    assert ingested(project(), stores).decoded == 500
    begun[0].join()
    assert snapshotted(project(), stores).added == 500


def rows(stores: Stores, files: dict[str, bytes]) -> Callable[[Known], list[pa.RecordBatch]]:
    """The rows of a snapshot of these files, to append them again elsewhere."""
    deliver(files, stores, "source")
    found = stores.datasets.read(snapshotted(project(), stores, "source")).to_batches()
    return lambda known: found


@pytest.mark.parametrize("frozen", [False, True], ids=["dead", "frozen"])
def test_in_the_middle_of_an_append(server: Seaweed, stores: Stores, frozen: bool) -> None:
    made = rows(stores, folder_batch(300))
    begun: list[threading.Thread] = []

    def breaks(known: Known) -> Iterator[pa.RecordBatch]:
        begun or begun.append(server.outage(GONE_SECONDS[True], frozen=frozen))
        yield from made(known)

    appended = stores.datasets.append("other", breaks, mark="one", since=0)
    begun[0].join()
    assert appended.added == 300
    assert stores.datasets.append("other", made, mark="one", since=0) == appended
    assert stores.datasets.tally("other", stores.datasets.version("other"), "batch") == {"source": 300}


def test_between_rows_and_commit(server: Seaweed, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are written, the server dies before the version that would hold them: none of it counts twice."""
    made = rows(stores, folder_batch(50))
    numbered, begun = at_call(1, lambda: server.outage(GONE_SECONDS[True]), _numbered())
    monkeypatch.setattr("visionloop.stores.datasets._numbered", numbered)
    appended = Datasets(stores.objects).append("other", made, mark="one", since=0)
    begun[0].join()
    assert appended.added == 50
    version = stores.datasets.version("other")
    assert stores.datasets.tally("other", version, "batch") == {"source": 50}
    assert sample_id(folder_batch(1)["a/000.png"]) in stores.datasets.tally("other", version, "sample_id")


def _numbered() -> Callable[..., Any]:
    from visionloop.stores import datasets

    return datasets._numbered
