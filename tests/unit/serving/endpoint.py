"""An endpoint in this process: the KServe gRPC service on a free port, answering by a function. No server, no Envoy."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as service


@dataclass(frozen=True)
class Said:
    """An answer of a lane."""

    lane: str
    version: int
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Failed:
    """A failure of a lane; without a lane nobody was reached."""

    code: grpc.StatusCode
    detail: str
    lane: str | None = None
    trailing: tuple[tuple[str, str], ...] = ()


@dataclass
class Asked:
    """A request as it came."""

    model: str
    images: NDArray[np.uint8]
    headers: dict[str, str] = field(default_factory=dict)


Answering = Callable[[Asked], Said | Failed]


class _Service(service.GRPCInferenceServiceServicer):
    def __init__(self, answering: Answering, config: str | None) -> None:
        self._answering = answering
        self._config = config

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if self._config is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return pb.ModelConfigResponse(config=text_format.Parse(self._config, model_config_pb2.ModelConfig()))

    def ModelInfer(self, request: Any, context: Any) -> Any:
        [tensor] = request.inputs
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(list(tensor.shape))
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        said = self._answering(Asked(request.model_name, images, headers))
        lane = [("x-lane", said.lane)] if said.lane else []
        context.send_initial_metadata([*lane, ("x-request-id", headers.get("x-request-id", f"r{id(request)}"))])
        if isinstance(said, Failed):
            context.set_trailing_metadata(said.trailing)
            context.abort(said.code, said.detail)
        assert isinstance(said, Said)
        rows = np.ascontiguousarray(said.probabilities, np.float32)
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version=str(said.version))
        answer.outputs.add(name="probabilities", datatype="FP32", shape=rows.shape)
        answer.raw_output_contents.append(rows.tobytes())
        return answer


@contextmanager
def endpoint(answering: Answering, config: str | None = None, *, port: int = 0) -> Iterator[str]:
    """The URL of an endpoint that answers so; `config` is the text of the model's config.pbtxt."""
    server = grpc.server(ThreadPoolExecutor(8))
    service.add_GRPCInferenceServiceServicer_to_server(_Service(answering, config), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5)
