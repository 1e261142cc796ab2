"""Reads captured rows: which of them hold an image and an answer in the model's shape, and both as arrays. Pure."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visionloop.project import ImageShape

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float32]


def usable(rows: pa.Table, shape: ImageShape, classes: int) -> pa.ChunkedArray:
    """A mask of the rows whose image was kept and is of this shape, with an answer of so many classes."""
    size = shape.height * shape.width * shape.channels
    tests = [
        pc.equal(pc.binary_length(rows["image"]), size),
        pc.equal(rows["height"], shape.height),
        pc.equal(rows["width"], shape.width),
        pc.equal(rows["channels"], shape.channels),
        pc.equal(pc.list_value_length(rows["probabilities"]), classes),
    ]
    result = tests[0]
    for test in tests[1:]:
        result = pc.and_(result, test)
    return pc.fill_null(result, False)


def to_images(column: pa.ChunkedArray, shape: ImageShape) -> Pixels:
    """Raw uint8 HWC bytes, one image a row, as NHWC."""
    flat = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
    return flat.reshape(len(column), shape.height, shape.width, shape.channels)


def matrix(lists: pa.ChunkedArray) -> Matrix:
    """A column of equally long lists as float32 [N, length]."""
    values = lists.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    flat: Matrix = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(values), -1) if len(values) else flat.reshape(0, 0)
