"""Reads KServe v2 inferences off the wire: HTTP with JSON or binary tensors, and gRPC. Pure; bodies as Envoy saw them.

https://github.com/kserve/open-inference-protocol and Triton's binary tensor data extension.
"""

import gzip
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from visionloop.errors import DataError
from visionloop.packaging.graph import INPUT, PROBABILITIES

DTYPES = {"UINT8": np.uint8, "FP32": np.float32}
LARGEST_BYTES = 64 << 20
"""A compressed body that unpacks to more is refused."""
FRAME_BYTES = 5
GRPC_FIELDS = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, EOFError, RecursionError),
    zlib.error,
    DecodeError,
)
"""What the parsers below raise for bytes that are something else."""

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Inference:
    """One request and its answer."""

    model: str
    version: int
    images: NDArray[np.uint8]
    """[N,H,W,C]"""
    probabilities: NDArray[np.float32]
    """[N,K]"""


@dataclass(frozen=True)
class Message:
    """Head and body of a request or a response; header names in lower case."""

    headers: Headers
    body: bytes


def read_inference(request: Message, response: Message) -> Inference:
    """Put a request and its answer together. Raises DataError for bodies that are no whole inference of ours."""
    grpc = request.headers.get("content-type", "").startswith("application/grpc")
    try:
        model, version, images, probabilities = (_read_grpc if grpc else _read_http)(request, response)
    except UNREADABLE as error:
        raise DataError(f"this is no KServe v2 inference: {type(error).__name__}: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or probabilities.ndim != 2:
        raise DataError(f"expected images uint8 [N,H,W,C], found {images.dtype} {list(images.shape)}")
    if len(images) != len(probabilities):
        raise DataError(f"{len(images)} images, but {len(probabilities)} answers")
    return Inference(model, version, images, probabilities.astype(np.float32, copy=False))


def _read_http(request: Message, response: Message) -> tuple[str, int, Any, Any]:
    asked, asked_raw = _http_parts(request)
    said, said_raw = _http_parts(response)
    images = _http_tensor(asked["inputs"], asked_raw, INPUT)
    probabilities = _http_tensor(said["outputs"], said_raw, PROBABILITIES)
    return said["model_name"], int(said["model_version"]), images, probabilities


def _http_parts(message: Message) -> tuple[Any, memoryview]:
    """The JSON head, and the raw tensors behind it."""
    body = _decompressed(message.body, message.headers.get("content-encoding", ""))
    length = int(message.headers.get("inference-header-content-length") or len(body))
    return json.loads(body[:length]), memoryview(body)[length:]


def _http_tensor(tensors: list[dict[str, Any]], raw: memoryview, name: str) -> NDArray[Any]:
    """The tensor of this name; raw tensors stand one after the other in the order of the head."""
    at = 0
    for tensor in tensors:
        size = int(tensor.get("parameters", {}).get("binary_data_size", 0))
        if tensor["name"] == name:
            dtype = DTYPES[tensor["datatype"]]
            values = np.frombuffer(raw[at : at + size], dtype) if size else np.asarray(tensor["data"], dtype)
            return values.reshape(tensor["shape"])
        at += size
    raise KeyError(name)


def _read_grpc(request: Message, response: Message) -> tuple[str, int, Any, Any]:
    from tritonclient.grpc import service_pb2

    asked = service_pb2.ModelInferRequest.FromString(_grpc_payload(request))
    said = service_pb2.ModelInferResponse.FromString(_grpc_payload(response))
    images = _grpc_tensor(asked.inputs, asked.raw_input_contents, INPUT)
    probabilities = _grpc_tensor(said.outputs, said.raw_output_contents, PROBABILITIES)
    return said.model_name, int(said.model_version), images, probabilities


def _grpc_payload(message: Message) -> bytes:
    """The one message of a unary call: a byte that says whether it is compressed, its length, its bytes."""
    length = int.from_bytes(message.body[1:FRAME_BYTES], "big")
    payload = message.body[FRAME_BYTES : FRAME_BYTES + length]
    if len(message.body) < FRAME_BYTES or len(payload) != length:
        raise ValueError(f"a gRPC message of {length} bytes, of which {len(payload)} came")
    return _decompressed(payload, message.headers.get("grpc-encoding", "")) if message.body[0] else payload


def _grpc_tensor(tensors: Any, raw: Any, name: str) -> NDArray[Any]:
    for index, tensor in enumerate(tensors):
        if tensor.name == name:
            dtype = DTYPES[tensor.datatype]
            typed = getattr(tensor.contents, GRPC_FIELDS[tensor.datatype])
            values = np.frombuffer(raw[index], dtype) if raw else np.asarray(typed, dtype)
            return values.reshape(list(tensor.shape))
    raise KeyError(name)


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
            whole = stream.read(LARGEST_BYTES + 1)
    elif encoding == "deflate":
        whole = zlib.decompressobj().decompress(body, LARGEST_BYTES + 1)
    else:
        raise ValueError(f"unknown encoding {encoding!r}")
    if len(whole) > LARGEST_BYTES:
        raise ValueError(f"the body unpacks to more than {LARGEST_BYTES} bytes")
    return whole
