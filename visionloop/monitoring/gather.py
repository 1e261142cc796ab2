"""Captured rows -> rows of a window's table: those with a usable image, each measured."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visionloop.monitoring.samples import Matrix, matrix, to_columns
from visionloop.monitoring.score import Scorer, measure
from visionloop.project import ImageShape

Pixels = NDArray[np.uint8]
CAPTURED = ("request_id", "at", "lane", "probabilities", "image", "height", "width", "channels")
"""The columns of a capture file that a window needs."""
KEPT = ("request_id", "at", "lane", "image")


class Gatherer:
    """Measures captured rows batch by batch and counts what it has seen."""

    def __init__(self, scorer: Scorer, shape: ImageShape, classes: int) -> None:
        self._scorer, self._shape, self._classes = scorer, shape, classes
        self.samples = 0
        self.skipped = 0
        """Rows without an image, or whose image or answer is not what this project's model takes and gives."""
        self.skew = 0.0
        """Largest difference between a served probability and the one that the champion's file gives here."""
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None

    def add(self, rows: pa.Table) -> pa.Table | None:
        """The window's rows of these captured rows; None when no row is usable."""
        usable = rows.filter(self._usable(rows))
        self.skipped += len(rows) - len(usable)
        if not len(usable):
            return None
        images = to_images(usable["image"], self._shape)
        measured = measure(images, self._scorer)
        served = matrix(usable["probabilities"])
        self._note(usable["at"], served, measured.probabilities)
        # What clients were told counts, not what the model would say here.
        columns = to_columns(replace(measured, probabilities=served))
        return pa.table({name: usable[name] for name in KEPT} | columns)

    def _usable(self, rows: pa.Table) -> pa.ChunkedArray:
        shape = self._shape
        size = shape.height * shape.width * shape.channels
        tests = [
            pc.equal(pc.binary_length(rows["image"]), size),
            pc.equal(rows["height"], shape.height),
            pc.equal(rows["width"], shape.width),
            pc.equal(rows["channels"], shape.channels),
            pc.equal(pc.list_value_length(rows["probabilities"]), self._classes),
        ]
        result = tests[0]
        for test in tests[1:]:
            result = pc.and_(result, test)
        return pc.fill_null(result, False)

    def _note(self, at: pa.ChunkedArray, served: Matrix, computed: Matrix) -> None:
        times = pc.min_max(at).as_py()
        self.first_at = min(_utc(times["min"]), self.first_at or _utc(times["min"]))
        self.last_at = max(_utc(times["max"]), self.last_at or _utc(times["max"]))
        self.samples += len(served)
        self.skew = max(self.skew, float(np.abs(served - computed).max()))


def to_images(column: pa.ChunkedArray, shape: ImageShape) -> Pixels:
    """Raw uint8 HWC bytes, one image a row, as NHWC."""
    flat = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
    return flat.reshape(len(column), shape.height, shape.width, shape.channels)


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
