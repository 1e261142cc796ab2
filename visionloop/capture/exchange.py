"""One request and its response, put together from the messages that Envoy copies, within bounds."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from visionloop.serving.envoy_capture import AUTHORITY, MIRRORED, SHADOW
from visionloop.serving.envoy_routes import INFER, LANE_HEADER, LATENCY_HEADER, MODEL_HEADER
from visionloop.serving.kserve import Message

LARGEST_BYTES = 32 << 20
"""Request and response together."""
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass
class Exchange:
    """Grows while a request passes through the endpoint."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    request_headers: dict[str, str] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    request_body: bytearray = field(default_factory=bytearray)
    response_body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    """The response came to its end."""

    def take(self, message: Any) -> None:
        """Add one ProcessingRequest."""
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            self.request_headers = _headers(message.request_headers.headers)
        elif kind == "request_body":
            self.request_body += message.request_body.body
        elif kind == "response_headers":
            self.response_headers = _headers(message.response_headers.headers)
            self.complete = message.response_headers.end_of_stream
        elif kind == "response_body":
            self.response_body += message.response_body.body
            self.complete = message.response_body.end_of_stream
        elif kind == "response_trailers":
            self.trailers = _headers(message.response_trailers.trailers)
            self.complete = True

    @property
    def size_bytes(self) -> int:
        """What it holds of the bodies."""
        return len(self.request_body) + len(self.response_body)

    @property
    def answered(self) -> bool:
        """Whole, and not an error; an error over gRPC is HTTP 200 too."""
        grpc = self.trailers.get("grpc-status", self.response_headers.get("grpc-status", "0"))
        return self.complete and self.status == 200 and grpc == "0"

    @property
    def status(self) -> int:
        """HTTP status."""
        text = self.response_headers.get(":status", "0")
        return int(text) if text.isdigit() else 0

    @property
    def lane(self) -> str:
        """Which lane answered; `shadow` for a mirrored request, whose answer went to nobody."""
        mirrored = MIRRORED.fullmatch(self.request_headers.get(AUTHORITY, ""))
        return self.response_headers.get(LANE_HEADER, "") or (SHADOW if mirrored else "")

    @property
    def model(self) -> str:
        """The model that was asked, '' where there is none: the routes let only known models' requests come here."""
        path = self.request_headers.get(":path", "").partition("?")[0]
        if path == INFER:
            return self.request_headers.get(MODEL_HEADER, "")
        parts = path.split("/")
        return parts[3] if path.startswith("/v2/models/") else ""

    @property
    def request_id(self) -> str:
        """The endpoint's id of the request."""
        return self.request_headers.get("x-request-id", "")

    @property
    def trace_id(self) -> str:
        """32 hex digits of the caller's W3C trace, '' where it sent none."""
        found = TRACEPARENT.fullmatch(self.request_headers.get("traceparent", ""))
        return found[1] if found else ""

    @property
    def latency_ms(self) -> float:
        """From the first byte of the request to the first byte of the lane's answer, as Envoy measured it."""
        text = self.response_headers.get(LATENCY_HEADER, "")
        return int(text) / 1000 if text.isdigit() else 0.0

    def messages(self) -> tuple[Message, Message]:
        """Request and response as the parser takes them."""
        return (
            Message(self.request_headers, bytes(self.request_body)),
            Message(self.response_headers, bytes(self.response_body)),
        )


def _headers(headers: Any) -> dict[str, str]:
    return {h.key.lower(): h.value or h.raw_value.decode("utf-8", "replace") for h in headers.headers}
