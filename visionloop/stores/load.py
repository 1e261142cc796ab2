"""Asks a Triton server as fast as it answers, a fixed number of requests at a time, and counts."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionloop.packaging.graph import INPUT, PROBABILITIES

CHANNELS = 4
"""Connections that share the requests."""
DEADLINE_SECONDS = 30.0


@dataclass
class Answered:
    """What came back while it was timed."""

    seconds: float
    latencies_ms: list[float] = field(default_factory=list)
    failures: int = 0

    def percentile_ms(self, q: float) -> float:
        """0 where nothing was answered."""
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else 0.0


def closed_loop(
    address: str, model: str, images: NDArray[np.uint8], *, concurrency: int, warm_seconds: float, seconds: float
) -> Answered:
    """Requests of these images (uint8 [N,H,W,C]) to `host:port`, for `seconds` after some that are not counted."""
    return asyncio.run(_closed_loop(address, _request(model, images), concurrency, warm_seconds, seconds))


async def _closed_loop(address: str, request: Any, concurrency: int, warm_seconds: float, seconds: float) -> Answered:
    import grpc.aio
    from tritonclient.grpc import service_pb2_grpc

    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(min(CHANNELS, concurrency))]
    stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
    found, begins = Answered(seconds), time.perf_counter() + warm_seconds

    async def ask(stub: Any) -> None:
        while time.perf_counter() < begins + seconds:
            sent = time.perf_counter()
            try:
                await stub.ModelInfer(request, timeout=DEADLINE_SECONDS)
            except grpc.aio.AioRpcError:
                found.failures += sent >= begins
                await asyncio.sleep(0.01)  # a server that is away is not asked without a pause
                continue
            now = time.perf_counter()
            if sent >= begins and now <= begins + seconds:
                found.latencies_ms.append(1000 * (now - sent))

    try:
        await asyncio.gather(*(ask(stubs[number % len(stubs)]) for number in range(concurrency)))
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))
    return found


def _request(model: str, images: NDArray[np.uint8]) -> Any:
    from tritonclient.grpc import service_pb2 as pb

    return pb.ModelInferRequest(
        model_name=model,
        inputs=[pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="UINT8", shape=images.shape)],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=PROBABILITIES)],
        raw_input_contents=[np.ascontiguousarray(images).tobytes()],
    )
