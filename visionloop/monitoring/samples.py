"""Measured samples of reference or window: image properties, embeddings, probabilities; to Arrow and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visionloop.serving.captured import Matrix, matrix


@dataclass(frozen=True)
class Samples:
    """N samples; every array has N rows."""

    properties: Matrix
    """[N, P], columns named by `property_names`."""
    property_names: tuple[str, ...]
    embedding: Matrix
    """[N, D] of the champion's last layer but one."""
    probabilities: Matrix
    """[N, K] as the endpoint answered, or as the champion's model answers for the reference."""

    def __len__(self) -> int:
        return len(self.properties)

    def take(self, rows: NDArray[np.int64]) -> "Samples":
        """These rows, in this order."""
        return Samples(self.properties[rows], self.property_names, self.embedding[rows], self.probabilities[rows])


def to_columns(samples: Samples) -> dict[str, pa.Array]:
    """Arrow columns: one float32 a property, and lists `embedding` and `probabilities`."""
    columns = {name: pa.array(samples.properties[:, at]) for at, name in enumerate(samples.property_names)}
    return columns | {"embedding": _lists(samples.embedding), "probabilities": _lists(samples.probabilities)}


def from_table(table: pa.Table, property_names: Sequence[str]) -> Samples:
    """The inverse of `to_columns` on a table that may have other columns too."""
    measured = [table[name].to_numpy() for name in property_names]
    return Samples(
        np.stack(measured, axis=1).astype(np.float32) if len(table) else np.empty((0, len(measured)), np.float32),
        tuple(property_names),
        matrix(table["embedding"]),
        matrix(table["probabilities"]),
    )


def _lists(values: Matrix) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
