"""The dataset store on a folder: nothing twice, nothing lost, whoever else writes and wherever a process dies."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from visionloop.errors import DataError, NotFound
from visionloop.records import Snapshot
from visionloop.stores.datasets import SCHEMA, Appended, Datasets, Known

from .deliveries import sample_id, stores


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    return stores(tmp_path).datasets


def rows(numbers: Iterable[int], batch: str = "one", group: str = "") -> Callable[[Known], list[pa.RecordBatch]]:
    """Samples that are named by numbers; even ones are in train."""
    made = [
        {
            "sample_id": sample_id(str(number).encode()),
            "label": "ab"[number % 2],
            "group": group,
            "batch": batch,
            "split": "test" if number % 2 else "train",
            "image": str(number).encode(),
            "height": 8,
            "width": 8,
            "channels": 1,
            "metadata": "{}",
            "added_at": datetime.now(UTC),
        }
        for number in numbers
    ]
    return lambda known: [pa.RecordBatch.from_pylist(made[at : at + 7], SCHEMA) for at in range(0, len(made), 7)]


def at(version: int) -> Snapshot:
    return Snapshot(
        id="s",
        project="p",
        dataset_uri="",
        version=version,
        tag="",
        batches=[],
        samples=0,
        added=0,
        splits={},
        classes={},
    )


def images(datasets: Datasets, version: int, split: str | None = None) -> list[int]:
    return [int(image) for image in datasets.read(at(version), split=split, columns=["image"])["image"].to_pylist()]


def test_appends_only_what_is_new(datasets: Datasets) -> None:
    assert datasets.version("p") == 0
    first = datasets.append("p", rows(range(20)), mark="one", since=0)
    second = datasets.append("p", rows(range(10, 30), "two"), mark="two", since=first.version)
    assert (first.added, second.added) == (20, 10)
    assert second.version == first.version + 1 == datasets.version("p")
    assert images(datasets, second.version) == list(range(30))
    assert images(datasets, first.version) == list(range(20))
    assert datasets.tally("p", second.version, "batch") == {"one": 20, "two": 10}


def test_the_same_image_twice_in_one_append_is_added_once(datasets: Datasets) -> None:
    appended = datasets.append("p", rows([1, 2, 1, 3, 4, 5, 6, 7, 2, 8]), mark="one", since=0)
    assert appended.added == 8
    assert images(datasets, appended.version) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_same_mark_appends_once_even_after_others(datasets: Datasets) -> None:
    first = datasets.append("p", rows(range(5)), mark="one", since=0)
    datasets.append("p", rows(range(5, 9)), mark="two", since=0)
    assert datasets.append("p", rows(range(5)), mark="one", since=0) == first


def test_nothing_new_makes_no_version(datasets: Datasets) -> None:
    first = datasets.append("p", rows(range(5)), mark="one", since=0)
    assert datasets.append("p", rows(range(5)), mark="two", since=first.version) == Appended(first.version, 0)


def test_appends_at_the_same_time_neither_double_nor_lose(datasets: Datasets) -> None:
    datasets.append("p", rows([]), mark="none", since=0)

    def append(number: int) -> Appended:
        return datasets.append("p", rows(range(10 + number), f"b{number}"), mark=f"m{number}", since=0)

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(append, range(6)))
    version = datasets.version("p")
    assert sorted(images(datasets, version)) == list(range(15))
    assert sum(one.added for one in done) == 15


def test_two_processes_that_create_at_once(datasets: Datasets) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: datasets.append("p", rows([n]), mark=f"m{n}", since=0), range(4)))
    assert sorted(images(datasets, datasets.version("p"))) == [0, 1, 2, 3]


@pytest.mark.parametrize("attempt", range(5))
def test_a_dataset_is_created_once_and_never_emptied_by_a_later_creation(datasets: Datasets, attempt: int) -> None:
    creators = 8
    together = Barrier(creators)

    def create(_: int) -> None:
        together.wait()
        datasets._create("p")

    with ThreadPoolExecutor(creators) as pool:
        list(pool.map(create, range(creators)))
    assert datasets.version("p") == 1


def test_an_append_that_dies_leaves_nothing(datasets: Datasets) -> None:
    def dies(known: Known) -> Iterable[pa.RecordBatch]:
        yield from rows(range(7))(known)
        raise DataError("the verdict is not about these rows")

    with pytest.raises(Exception, match="the verdict is not about these rows"):
        datasets.append("p", dies, mark="one", since=0)
    assert images(datasets, datasets.version("p")) == []
    assert datasets.append("p", rows(range(7)), mark="one", since=0).added == 7


def test_rows_are_told_what_is_known(datasets: Datasets) -> None:
    datasets.append("p", rows([0, 2], group="g"), mark="one", since=0)
    seen: list[Known] = []

    def looks(known: Known) -> list[pa.RecordBatch]:
        seen.append(known)
        return rows([4])(known)

    datasets.append("p", looks, mark="two", since=0)
    assert seen[0].groups == {"g": "train"}
    assert seen[0].sample_ids == {sample_id(b"0"), sample_id(b"2")}


def test_reading_by_split_column_and_row(datasets: Datasets) -> None:
    version = datasets.append("p", rows(range(20)), mark="one", since=0).version
    assert images(datasets, version, "train") == list(range(0, 20, 2))
    assert images(datasets, version, "test") == list(range(1, 20, 2))
    assert images(datasets, version, "validation") == []
    assert datasets.count(at(version)) == 20 and datasets.count(at(version), "test") == 10
    streamed = list(datasets.batches(at(version), columns=["image"], rows=6))
    assert max(batch.num_rows for batch in streamed) <= 6 and sum(batch.num_rows for batch in streamed) == 20
    taken = datasets.take(at(version), [13, 2, 2], ["image", "label"])
    assert taken["image"].to_pylist() == [b"13", b"2", b"2"]
    assert datasets.read(at(version)).schema.names == SCHEMA.names
    with pytest.raises(DataError, match="no split 'dev'"):
        datasets.count(at(version), "dev")  # type: ignore[arg-type]


def test_labels_of_known_samples(datasets: Datasets) -> None:
    wanted = pa.array([sample_id(b"1"), sample_id(b"99")])
    assert datasets.labels("p", 0, wanted) == {}
    version = datasets.append("p", rows(range(3)), mark="one", since=0).version
    assert datasets.labels("p", version, wanted) == {sample_id(b"1"): "b"}


def test_a_tag_names_one_version_for_ever(datasets: Datasets) -> None:
    first = datasets.append("p", rows([1]), mark="one", since=0).version
    assert datasets.tag("p", "t", first) == first
    second = datasets.append("p", rows([2]), mark="two", since=0).version
    assert datasets.tag("p", "t", second) == first


def test_what_is_not_there(datasets: Datasets) -> None:
    with pytest.raises(NotFound, match=r"samples\.lance"):
        datasets.open(at(1))
    datasets.append("p", rows([1]), mark="one", since=0)
    with pytest.raises(NotFound):
        datasets.count(at(77))


@pytest.mark.parametrize("chosen", [[], [0], [9, 2, 3], list(range(10)), [3, 99]])
def test_pick_takes_rows_of_a_split_by_number(datasets: Datasets, chosen: list[int]) -> None:
    version = datasets.append("p", rows(range(20)), mark="m", since=0).version
    in_test = images(datasets, version, "test")
    batches = list(datasets.pick(at(version), chosen, split="test", columns=["image", "label"]))
    found = [int(image) for batch in batches for image in batch.column("image").to_pylist()]
    assert found == [number for place, number in enumerate(in_test) if place in chosen]
    assert all(batch.num_rows and batch.schema.names == ["image", "label"] for batch in batches)
