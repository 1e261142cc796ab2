"""The test samples with what scenarios ask of them, and which of them a scenario is about."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visionloop.data.images import decode_batch
from visionloop.project import Scenario, Task
from visionloop.tasks import open_task

COLUMNS = ("sample_id", "label", "batch", "metadata", "image")
KEYS = ("sample_id", "label", "batch", "metadata")


@dataclass(frozen=True)
class TestSamples:
    """`images` uint8 [N, H, W, C], `targets` int64 [N], `columns` name -> N values ("" where a sample has none)."""

    __test__ = False  # no test of pytest

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return len(self.targets)

    def where(self, conditions: Mapping[str, str]) -> NDArray[np.bool_]:
        """Which samples have all these values; a column that no sample has matches nothing."""
        chosen = np.ones(len(self), np.bool_)
        for column, value in conditions.items():
            chosen &= self.columns[column] == value if column in self.columns else False
        return chosen

    def slices(self, scenarios: Iterable[Scenario]) -> dict[str, NDArray[np.bool_]]:
        """Name -> which samples [N]: each slice of the suite, then each class; the name is `column=value`."""
        asked = [scenario.where for scenario in scenarios if scenario.where]
        asked += [{"label": str(label)} for label in np.unique(self.columns["label"])]
        return {",".join(f"{k}={v}" for k, v in sorted(where.items())): self.where(where) for where in asked}


def choose(labels: NDArray[np.str_], limit: int, *, seed: int) -> NDArray[np.int64]:
    """Row numbers of a stratified sample without replacement, ascending; all rows when there are no more than `limit`.

    Each class gets its share of `limit`, rounded by largest remainders, so that the sizes add up.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    classes, members = np.unique(labels, return_inverse=True)
    exact = np.bincount(members) * limit / len(labels)
    sizes = np.floor(exact).astype(np.int64)
    largest = np.argsort(sizes - exact, kind="stable")[: limit - sizes.sum()]
    sizes[largest] += 1
    taken = [
        random.choice(np.flatnonzero(members == number), sizes[number], replace=False) for number in range(len(classes))
    ]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def read_test_samples(batches: Iterable[pa.RecordBatch], task: Task) -> TestSamples:
    """Decode rows with COLUMNS. Metadata keys become columns of their own; `label` and `batch` keep their meaning."""
    rules, shape = open_task(task), task.image
    images = [np.empty((0, shape.height, shape.width, shape.channels), np.uint8)]
    labels: list[str] = []
    rows: list[dict[str, str]] = []
    for batch in batches:
        images.append(decode_batch(batch.column("image").to_pylist(), shape))
        labels += batch.column("label").to_pylist()
        for row in batch.select(KEYS).to_pylist():
            known = {key: row[key] for key in ("sample_id", "label", "batch")}
            rows.append({**_texts(row["metadata"]), **known})
    names = sorted({name for row in rows for name in row})
    columns = {name: np.array([row.get(name, "") for row in rows], np.str_) for name in names}
    return TestSamples(np.concatenate(images), rules.targets(labels), columns)


def _texts(metadata: str) -> dict[str, str]:
    return {key: str(value) for key, value in json.loads(metadata or "{}").items()}
