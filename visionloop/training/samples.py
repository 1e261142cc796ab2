"""A split in memory: uint8 images and targets, decoded once from the dataset's rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visionloop.data.images import decode_batch
from visionloop.project import Task
from visionloop.tasks import open_task

COLUMNS = ("label", "image")


@dataclass(frozen=True)
class Samples:
    """`images` uint8 [N, H, W, C] of the model's size, `targets` int64 [N]."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)


def read_samples(batches: Iterable[pa.RecordBatch], task: Task) -> Samples:
    """Decode rows with the columns `label` and `image`. Raises DataError for an unknown label or a broken image."""
    rules, shape = open_task(task), task.image
    images = [np.empty((0, shape.height, shape.width, shape.channels), np.uint8)]
    targets = [np.empty(0, np.int64)]
    for batch in batches:
        images.append(decode_batch(batch.column("image").to_pylist(), shape))
        targets.append(rules.targets(batch.column("label").to_pylist()))
    return Samples(np.concatenate(images), np.concatenate(targets))
