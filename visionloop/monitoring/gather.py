"""Captured rows -> rows of a window's table: those with a usable image, each measured."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visionloop.monitoring.samples import to_columns
from visionloop.monitoring.score import Scorer, measure
from visionloop.project import ImageShape
from visionloop.serving.captured import Matrix, matrix, to_images, usable

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
        found = rows.filter(usable(rows, self._shape, self._classes))
        self.skipped += len(rows) - len(found)
        if not len(found):
            return None
        images = to_images(found["image"], self._shape)
        measured = measure(images, self._scorer)
        served = matrix(found["probabilities"])
        self._note(found["at"], served, measured.probabilities)
        # What clients were told counts, not what the model would say here.
        columns = to_columns(replace(measured, probabilities=served))
        return pa.table({name: found[name] for name in KEPT} | columns)

    def _note(self, at: pa.ChunkedArray, served: Matrix, computed: Matrix) -> None:
        times = pc.min_max(at).as_py()
        self.first_at = min(_utc(times["min"]), self.first_at or _utc(times["min"]))
        self.last_at = max(_utc(times["max"]), self.last_at or _utc(times["max"]))
        self.samples += len(served)
        self.skew = max(self.skew, float(np.abs(served - computed).max()))


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
