"""What Envoy copies to the capture service: the messages of one request, and whole exchanges."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from tests.unit.serving.wire import grpc_raw, http_binary
from visionloop.capture.exchange import Exchange
from visionloop.capture.messages import ProcessingRequest
from visionloop.serving.kserve import Message

ANSWER = {":status": "200", "x-lane": "stable", "x-latency-us": "2500"}


def headers(kind: str, values: dict[str, str], *, end: bool = False) -> Any:
    """Heads of a request or a response, as Envoy sends them: values as bytes."""
    message = ProcessingRequest()
    part = getattr(message, kind)
    part.end_of_stream = end
    for key, value in values.items():
        part.headers.headers.add(key=key, raw_value=value.encode())
    return message


def body(kind: str, data: bytes, *, end: bool) -> Any:
    """A piece of a body."""
    message = ProcessingRequest()
    getattr(message, kind).body = data
    getattr(message, kind).end_of_stream = end
    return message


def trailers(values: dict[str, str]) -> Any:
    """What ends a gRPC answer."""
    message = ProcessingRequest()
    message.response_trailers.SetInParent()
    for key, value in values.items():
        message.response_trailers.trailers.headers.add(key=key, raw_value=value.encode())
    return message


def messages(request_id: str = "r1", *, piece: int = 20, answer: dict[str, str] = ANSWER) -> list[Any]:
    """One HTTP inference of three images, in pieces."""
    asked, said = http_binary()
    head = {"x-request-id": request_id, ":path": "/v2/models/m/infer", **asked.headers}
    return [
        headers("request_headers", head),
        *_pieces("request_body", asked.body, piece),
        headers("response_headers", {**answer, **said.headers}),
        *_pieces("response_body", said.body, piece),
    ]


def grpc_messages(status: str = "0") -> list[Any]:
    """The same over gRPC, which says at the very end whether it went well."""
    asked, said = grpc_raw()
    return [
        headers("request_headers", {"x-request-id": "g1", **asked.headers}),
        body("request_body", asked.body, end=True),
        headers("response_headers", {**ANSWER, **said.headers}),
        body("response_body", said.body, end=False),
        trailers({"grpc-status": status}),
    ]


def exchange(request_id: str = "r1", *, lane: str = "stable", message: Message | None = None) -> Exchange:
    """A whole exchange; `message` replaces the request."""
    made = Exchange()
    for each in messages(request_id, answer={**ANSWER, "x-lane": lane}):
        made.take(each)
    if message:
        made.request_headers = {**message.headers, "x-request-id": request_id}
        made.request_body = bytearray(message.body)
    return made


async def stream(of: Iterable[Any]) -> AsyncIterator[Any]:
    """As gRPC hands them over."""
    for message in of:
        yield message


def _pieces(kind: str, data: bytes, piece: int) -> list[Any]:
    starts = range(0, len(data), piece)
    return [body(kind, data[at : at + piece], end=at + piece >= len(data)) for at in starts]
