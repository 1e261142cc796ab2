"""A small typed client of the endpoint: images in, labelled answers out, over KServe v2's gRPC."""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import DataError, StoreError
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.project import Project
from visionloop.serving.envoy_routes import LANE_HEADER, PROBE_HEADER, SESSION_HEADER

MESSAGE_BYTES = 16 << 20
RECONNECT_MS = 100


class EndpointError(StoreError):
    """The endpoint did not answer a request; `code` is gRPC's name for why, `lane` the lane that failed if known."""

    def __init__(self, message: str, *, code: str, lane: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.lane = lane


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


class Client:
    """The endpoint, for one project's model. Threads may share it; close it, or use it as a context manager."""

    def __init__(self, url: str, project: Project) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        address = urlsplit(url).netloc or url
        options = [
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            # After a hard restart of the endpoint gRPC would wait a second by default.
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ]
        self.url = url
        self._project = project
        self._channel: Any = grpc.insecure_channel(address, options=options)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def predict(
        self,
        images: NDArray[np.uint8],
        *,
        probe: bool = False,
        session: str | None = None,
        deadline_seconds: float | None = None,
    ) -> list[Answer]:
        """Answers for images uint8 NHWC, in their order; larger arrays go in requests of `serving.max_batch_size`.

        `probe` marks the loop's own requests, which are never captured; one `session` stays in one lane. Raises
        DataError for images of another shape, EndpointError when there is no answer by the deadline (default: the
        project's time-out).
        """
        self._check(images)
        metadata = [(PROBE_HEADER, "1")] if probe else []
        if session is not None:
            metadata.append((SESSION_HEADER, session))
        deadline = deadline_seconds or self._project.serving.timeout_ms / 1000
        step = self._project.serving.max_batch_size
        parts = [images[start : start + step] for start in range(0, len(images), step)]
        return [answer for part in parts for answer in self._request(part, metadata, deadline)]

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, images: NDArray[np.uint8]) -> None:
        shape = self._project.task.image
        expected = (shape.height, shape.width, shape.channels)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise DataError(
                f"{self._project.name} expects uint8 images [N, {', '.join(map(str, expected))}], "
                f"found {images.dtype} {list(images.shape)}"
            )

    def _request(self, images: NDArray[np.uint8], metadata: list[tuple[str, str]], deadline: float) -> list[Answer]:
        import grpc

        started = time.perf_counter()
        try:
            response, call = self._stub.ModelInfer.with_call(self._message(images), metadata=metadata, timeout=deadline)
        except grpc.RpcError as error:
            raise _translated(error, self.url, self._project.name) from None
        latency_ms = (time.perf_counter() - started) * 1000
        heads = dict(call.initial_metadata())
        return self._answers(response, str(heads.get(LANE_HEADER, "")), str(heads.get("x-request-id", "")), latency_ms)

    def _message(self, images: NDArray[np.uint8]) -> Any:
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelInferRequest(model_name=self._project.name)
        request.inputs.add(name=INPUT, datatype="UINT8", shape=images.shape)
        request.outputs.add(name=PROBABILITIES)
        request.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
        return request

    def _answers(self, response: Any, lane: str, request_id: str, latency_ms: float) -> list[Answer]:
        raw = np.frombuffer(response.raw_output_contents[0], np.float32)
        classes = self._project.task.classes
        rows = raw.reshape(-1, len(classes))
        version = int(response.model_version)
        best = rows.argmax(axis=1)
        return [
            Answer(classes[top], float(row[top]), row, lane, version, request_id, latency_ms)
            for row, top in zip(rows, best, strict=True)
        ]


def _translated(error: Any, url: str, model: str) -> EndpointError:
    code = error.code().name
    heads = dict(error.initial_metadata() or ())
    detail = " ".join(str(error.details()).split())[:300]
    return EndpointError(
        f"the endpoint {url} did not answer for {model}: {code}: {detail}", code=code, lane=heads.get(LANE_HEADER)
    )
