"""Requests that are wrong, each with the answer that its client must get, and plain sockets to send them with."""

import gzip
import http.client
import json
import socket
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2 as pb

MODEL = "told"
INFER = f"/v2/models/{MODEL}/infer"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMIT = 16 << 20


def tensor(**changed) -> dict:
    """The one input of a good request, changed; None leaves a member out."""
    whole = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64, **changed}
    return {key: value for key, value in whole.items() if value is not None}


def document(*tensors: dict, **more) -> bytes:
    return json.dumps({"inputs": list(tensors or (tensor(),)), **more}).encode()


@dataclass(frozen=True)
class Mistake:
    """What is sent over HTTP, and the answer's status and words."""

    name: str
    status: int
    says: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    path: str = INFER
    method: str = "POST"

    def wire(self) -> bytes:
        """The request as bytes."""
        head = {"host": "x", "content-length": str(len(self.body)), **self.headers}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


HEAD = document({**tensor(data=None), "parameters": {"binary_data_size": 64}})
HEAD_LENGTH = {"inference-header-content-length": str(len(HEAD))}

HTTP = [
    Mistake("type", 400, "data-type is 'FP32', but model 'told' expects 'UINT8'", document(tensor(datatype="FP32"))),
    Mistake("no type", 400, "invalid datatype for input image", document(tensor(datatype="NOPE"))),
    Mistake("shape", 400, "Expected [-1,8,8,1], got [1,4,16,1]", document(tensor(shape=[1, 4, 16, 1]))),
    Mistake("negative shape", 400, "'shape': attempt to access JSON non-unsigned", document(tensor(shape=[-1, 8]))),
    Mistake("name", 400, "unexpected inference input 'picture'", document(tensor(name="picture"))),
    Mistake("no name", 400, "Unable to parse 'name'", document(tensor(name=None))),
    Mistake("model", 404, "unknown model: 'nobody'", document(), path="/v2/models/nobody/infer"),
    Mistake("version", 404, "'told' version 9 is not found", document(), path=f"/v2/models/{MODEL}/versions/9/infer"),
    Mistake("no images", 400, "Expected 64, got 0", document(tensor(shape=[0, 8, 8, 1], data=[]))),
    Mistake("65 images", 400, "batch-size must be <= 64", document(tensor(shape=[65, 8, 8, 1], data=[0] * 64 * 65))),
    Mistake("no input", 400, "missing required input(s) ['image']", b'{"inputs": []}'),
    Mistake("few values", 400, "Shape does not match true shape of 'data'", document(tensor(data=[0] * 63))),
    Mistake("texts", 400, "Unable to parse 'data'", document(tensor(data=["a"] * 64))),
    Mistake("output", 400, "unexpected inference output 'nope'", document(outputs=[{"name": "nope"}])),
    Mistake("parameters", 400, "failed to get request params", document(parameters=7)),
    Mistake("classification", 400, "Unable to set 'classification'",
            document(outputs=[{"name": "probabilities", "parameters": {"classification": -1}}])),
    Mistake("malformed", 400, "failed to parse the request JSON buffer", b'{"inputs": ['),
    Mistake("bytes", 400, "failed to parse the request JSON buffer", bytes(range(256))),
    Mistake("no object", 400, "Unable to parse 'inputs'", b"[1, 2]"),
    Mistake("empty", 400, "Expected 64, got 0", b""),
    Mistake("few raw bytes", 400, "expecting 54 additional bytes", HEAD + bytes(10), HEAD_LENGTH),
    Mistake("more raw bytes", 400, "unexpected additional input data", HEAD + bytes(65), HEAD_LENGTH),
    Mistake("long head", 400, "inference header size should be in range", HEAD,
            {"inference-header-content-length": "99999"}),
    Mistake("deflate", 415, "expected a body that is gzip or not compressed", document(),
            {"content-encoding": "deflate"}),
    Mistake("large headers", 431, "headers of at most 7 KiB", document(), {"x-much": "a" * 9000}),
    Mistake("method", 405, "Method Not Allowed", document(), method="PUT"),
]  # fmt: skip

DEADLY = [
    Mistake("nested", 400, "at most 64 nested brackets", b"[" * 1_000_000),
    Mistake("nested objects", 400, "at most 64 nested brackets", b'{"a":' * 1_000_000),
    Mistake("nested, closed in texts", 400, "at most 64 nested brackets", b'["]]",' * 300_000),
    Mistake("nested, closed in quoted texts", 400, "at most 64 nested brackets", b'["\\"]]",' * 300_000),
    Mistake("nested, packed", 400, "at most 64 nested brackets", gzip.compress(b"[" * 1_000_000),
            {"content-encoding": "gzip"}),
    Mistake("nested, as gRPC", 400, "at most 64 nested brackets", b"[" * 1_000_000,
            {"content-type": "text/x-application/grpc"}),
    Mistake("nested head", 400, "at most 64 nested brackets", b"[" * 900_000 + bytes(64),
            {"inference-header-content-length": "900000"}),
    Mistake("nested head, said otherwise", 400, "at most 64 nested brackets", b"[" * 900_000,
            {"inference-header-content-length": "900000 bytes"}),
    Mistake("nested, other method", 400, "at most 64 nested brackets", b"[" * 1_000_000,
            path=f"/v2/models/{MODEL}/generate"),
    Mistake("large when unpacked", 413, f"at most {LIMIT} bytes", gzip.compress(bytes(LIMIT + 1)),
            {"content-encoding": "gzip"}),
]  # fmt: skip
"""What Triton dies of where it arrives, or would need gigabytes for."""


def message(raw: list[bytes] | None = None, *, model: str = MODEL, **changed) -> bytes:
    """A good gRPC request, changed."""
    one = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], **changed}
    tensors = [pb.ModelInferRequest.InferInputTensor(**one)]
    raw = [bytes(64)] if raw is None else raw
    return pb.ModelInferRequest(model_name=model, inputs=tensors, raw_input_contents=raw).SerializeToString()


GRPC = [
    ("type", "INVALID_ARGUMENT", "data-type is 'FP32', but model 'told' expects 'UINT8'", message(datatype="FP32")),
    ("shape", "INVALID_ARGUMENT", "Expected [-1,8,8,1], got [1,4,16,1]", message(shape=[1, 4, 16, 1])),
    ("name", "INVALID_ARGUMENT", "unexpected inference input 'picture'", message(name="picture")),
    ("model", "NOT_FOUND", "unknown model: 'nobody'", message(model="nobody")),
    ("no model", "NOT_FOUND", "unknown model: ''", b""),
    ("no images", "INVALID_ARGUMENT", "Expected 64, got 0", message([b""], shape=[0, 8, 8, 1])),
    ("65 images", "INVALID_ARGUMENT", "batch-size must be <= 64", message([bytes(65 * 64)], shape=[65, 8, 8, 1])),
    ("few raw bytes", "INVALID_ARGUMENT", "Expected 64, got 63", message([bytes(63)])),
    ("more raw bytes", "INVALID_ARGUMENT", "Expected 64, got 65", message([bytes(65)])),
    ("no raw bytes", "INVALID_ARGUMENT", "unable to find data for input tensor 'image'", message([])),
    ("bytes", "INVALID_ARGUMENT", "expected a ModelInferRequest of KServe v2", b"\xff" * 100),
    ("half", "INVALID_ARGUMENT", "expected a ModelInferRequest of KServe v2", message()[:-70] + b"\xff\xff"),
    ("strange model", "INVALID_ARGUMENT", "expected a model's name", b"\x0a\x02\x0b\x0c"),
    ("long name", "INVALID_ARGUMENT", "names and shapes of at most 8192 bytes", message(name="x" * 200_000)),
    ("long shape", "INVALID_ARGUMENT", "names and shapes of at most 8192 bytes", message(shape=[1] * 100_000)),
    ("rather long shape", "INVALID_ARGUMENT", "Expected [-1,8,8,1], got [1,1,1", message(shape=[1] * 5_000)),
    ("17 MiB", "RESOURCE_EXHAUSTED", f"at most {LIMIT} bytes, found more", message([bytes(17 << 20)])),
]  # fmt: skip


def ask_grpc(channel: grpc.Channel, data: bytes, path: str = GRPC_INFER, metadata=()) -> tuple[str, str]:
    """Status and message of one call with these bytes as its message."""
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(data, timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


class Wire:
    """A plain connection, on which requests may be sent before the answers to the last are read."""

    def __init__(self, port: int, seconds: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._file = self.socket.makefile("rb")
        self.heads = http.client.HTTPMessage()
        """Of the last answer."""

    def send(self, data: bytes) -> "Wire":
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, str]:
        """The next answer: its status and its body."""
        words = self._file.readline(1 << 16).split()
        if not words:
            raise ConnectionError("closed without an answer")
        headers = self.heads = http.client.parse_headers(self._file)
        status = int(words[1])
        body = self._file.read(int(headers.get("content-length", "0")))
        return (status, body.decode(errors="replace")) if status != 100 else self.answer()

    def head(self) -> bytes:
        """The next answer's first lines, all that there is of one without a body."""
        lines = iter(self._file.readline, b"\r\n")
        return b"".join(lines)

    def rest(self) -> bytes:
        """All that comes until the other side closes."""
        return self._file.read()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.socket.close()
