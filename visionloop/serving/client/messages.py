"""Images -> KServe v2's gRPC request, and its response -> answers. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import DataError
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.serving.client.model import Model
from visionloop.serving.envoy_routes import LANE_HEADER, TRIES_HEADER

REQUEST_ID_HEADER = "x-request-id"


@dataclass(frozen=True)
class Answer:
    """What the endpoint said about one image."""

    label: str
    confidence: float
    probabilities: NDArray[np.float32] = field(repr=False, compare=False)
    """One per class, in the project's order."""
    lane: str
    """`stable` or `canary`."""
    version: int
    request_id: str
    latency_ms: float
    """Of the whole request, seen from here."""
    labels: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The classes, in the order of `probabilities`."""
    asked: int = 1
    """How often the endpoint asked a lane until one answered."""

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable labels with their probabilities, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.labels[index], float(self.probabilities[index])) for index in best]


def checked(model: Model, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8 [N,H,W,C] of an array, or of a sequence of HWC images. Raises DataError for what is not the model's."""
    if not isinstance(images, np.ndarray):
        shapes = {(str(np.asarray(image).dtype), np.shape(image)) for image in images}
        if shapes != {("uint8", model.image)}:
            found = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in sorted(shapes)) or "no images at all"
            raise DataError(f"{model.name} expects {model.expected} or a list of such images, found {found}")
        return np.stack(images)
    if images.ndim != 4 or images.shape[1:] != model.image or images.dtype != np.uint8:
        raise DataError(f"{model.name} expects {model.expected}, found {images.dtype} {list(images.shape)}")
    return images


def encode(model: Model, images: NDArray[np.uint8]) -> Any:
    """A ModelInferRequest for images that were checked."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model.name)
    request.inputs.add(name=INPUT, datatype="UINT8", shape=images.shape)
    request.outputs.add(name=PROBABILITIES)
    request.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
    return request


def decode(
    model: Model, response: Any, heads: Mapping[str, str], *, sent: int, request_id: str, latency_ms: float
) -> list[Answer]:
    """The answers of a ModelInferResponse. Raises ValueError when it does not have a row of classes per image."""
    raw = response.raw_output_contents[0] if response.raw_output_contents else b""
    shape = (sent, len(model.labels))
    if len(raw) != sent * len(model.labels) * 4:
        found = list(response.outputs[0].shape) if response.outputs else []
        raise ValueError(f"expected probabilities float32 {list(shape)}, found {len(raw)} bytes of {found}")
    rows = np.frombuffer(raw, np.float32).reshape(shape)
    lane, version = str(heads.get(LANE_HEADER, "")), int(response.model_version)
    request_id = str(heads.get(REQUEST_ID_HEADER, request_id))
    tries = str(heads.get(TRIES_HEADER, "1"))
    asked = int(tries) if tries.isdecimal() else 1
    return [
        Answer(model.labels[top], float(row[top]), row, lane, version, request_id, latency_ms, model.labels, asked)
        for row, top in zip(rows, rows.argmax(axis=1), strict=True)
    ]
