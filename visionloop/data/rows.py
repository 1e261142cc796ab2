"""A delivered image -> a row of the ingest table: decoded and measured, or with the reason why it could not be."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from visionloop.data.formats import Delivered
from visionloop.data.images import ImageError, Pixels, decode, encode_png

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # unique in the batch
        pa.field("sample_id", pa.string(), nullable=False),  # SHA-256 of `image`; of the path where nothing was read
        pa.field("label", pa.string()),
        pa.field("group", pa.string(), nullable=False),  # "" = none given
        pa.field("metadata", pa.string(), nullable=False),  # JSON object of strings
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("brightness", pa.float32()),  # mean grey value, 0 to 255
        pa.field("image", pa.binary()),  # the file as delivered, broken or not; pixels without a file as PNG
        pa.field("error", pa.string()),  # why it is no image, in one word
        pa.field("detail", pa.string()),
    ]
)
VERDICT = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""The verdict on the rows of an ingest table, in their order; `reason` is "" for what was accepted."""
ROWS = 1024
BYTES = 32 << 20
LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601."""


def row(item: Delivered, *, max_side: int, group_by: str | None) -> dict[str, Any]:
    """One row of SCHEMA. Never raises for a broken image."""
    image = encode_png(item.content) if isinstance(item.content, np.ndarray) else item.content
    identity = item.path.encode() if image is None else image
    return {
        "path": item.path,
        "sample_id": hashlib.sha256(identity).hexdigest(),
        "label": item.label,
        "group": item.metadata.get(group_by, "") if group_by else "",
        "metadata": json.dumps(dict(item.metadata), sort_keys=True),
        "size_bytes": item.size_bytes,
        "image": image,
        **_measured(item, max_side),
    }


def record_batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Rows in batches that are bounded in number and bytes."""
    waiting: list[dict[str, Any]] = []
    size = 0
    for one in rows:
        waiting.append(one)
        size += len(one["image"] or b"")
        if len(waiting) >= ROWS or size >= BYTES:
            yield pa.RecordBatch.from_pylist(waiting, SCHEMA)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, SCHEMA)


def brightness(pixels: Pixels) -> float:
    """Mean grey value of a uint8 HW or HWC image, 0 to 255."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return float(pixels.mean())
    return float(pixels.reshape(-1, 3).mean(axis=0) @ LUMA)


def _measured(item: Delivered, max_side: int) -> dict[str, Any]:
    try:
        pixels = _pixels(item, max_side)
    except ImageError as error:
        return {"error": error.reason, "detail": str(error)}
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return {"height": height, "width": width, "channels": channels, "brightness": brightness(pixels)}


def _pixels(item: Delivered, max_side: int) -> Pixels:
    if item.content is None:
        raise ImageError("too_large", item.refused)
    if isinstance(item.content, bytes):
        return decode(item.content, max_side=max_side, verify=True)
    if max(item.content.shape[:2]) > max_side:
        raise ImageError("too_large", f"{item.content.shape[:2]} pixels, at most {max_side} a side are allowed")
    return item.content
