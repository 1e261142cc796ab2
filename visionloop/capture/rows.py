"""Captured requests as table rows, one per image, grouped into the files they belong to. Pure."""

import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from visionloop import layout
from visionloop.capture.exchange import Exchange
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.kserve import Inference

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("trace_id", pa.string()),  # '' where the caller sent no trace
        ("at", pa.timestamp("us", tz="UTC")),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("lane", pa.string()),
        ("status", pa.int32()),
        ("latency_ms", pa.float64()),
        ("probabilities", pa.list_(pa.float32())),
        ("prediction", pa.int32()),
        ("confidence", pa.float32()),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
    ]
)
GRAIN = 10_000


@dataclass(frozen=True)
class CaptureFile:
    """One object to be written."""

    key: str
    table: pa.Table
    model: str
    version: int
    lane: str


def make_files(
    inferences: Iterable[tuple[Exchange, Inference]], *, now: datetime, image_share: Callable[[str], float]
) -> list[CaptureFile]:
    """A file per model, version and lane. `image_share(model)` is the share of requests that keep their images.

    Mirrored ones keep none: the request itself is captured too.
    """
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for exchange, inference in inferences:
        keep = exchange.lane != SHADOW and keeps_image(exchange.request_id, image_share(inference.model))
        group = groups.setdefault((inference.model, inference.version, exchange.lane), [])
        group += _rows(exchange, inference, keep)
    return [
        CaptureFile(
            _key(model, version, lane, now, len(rows)),
            pa.Table.from_pylist(rows, schema=SCHEMA),
            model=model,
            version=version,
            lane=lane,
        )
        for (model, version, lane), rows in groups.items()
    ]


def keeps_image(request_id: str, share: float) -> bool:
    """Drawn by the request's id, so that all images of a request share its fate."""
    return zlib.crc32(request_id.encode()) % GRAIN < share * GRAIN


def _rows(exchange: Exchange, inference: Inference, keep: bool) -> Iterable[dict[str, Any]]:
    height, width, channels = inference.images.shape[1:]
    best = inference.probabilities.argmax(axis=1)
    for image, probabilities, prediction in zip(inference.images, inference.probabilities, best, strict=True):
        yield {
            "request_id": exchange.request_id,
            "trace_id": exchange.trace_id,
            "at": exchange.at,
            "model": inference.model,
            "version": inference.version,
            "lane": exchange.lane,
            "status": exchange.status,
            "latency_ms": exchange.latency_ms,
            "probabilities": probabilities,
            "prediction": int(prediction),
            "confidence": float(probabilities[prediction]),
            "image": image.tobytes() if keep else None,
            "height": height,
            "width": width,
            "channels": channels,
        }


def _key(model: str, version: int, lane: str, now: datetime, rows: int) -> str:
    name = f"{int(now.timestamp() * 1000)}-{uuid.uuid4()}-n{rows}.parquet"
    return f"{layout.captures(model)}version={version}/lane={lane}/hour={now:%Y%m%d%H}/{name}"
