"""The gRPC side: Envoy opens a stream per sampled request, copies what passes, and expects no answer."""

from collections.abc import AsyncIterator
from typing import Any

from visionloop.capture.buffer import Buffer
from visionloop.capture.counters import Counters, Outcome
from visionloop.capture.exchange import LARGEST_BYTES, Exchange
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.envoy_clusters import LANES
from visionloop.serving.traffic import NO_LANE

LARGEST_HELD_BYTES = 128 << 20
"""All requests that are passing at the moment, together."""


class CaptureStream:
    """Envoy's ExternalProcessor service, as an observer."""

    def __init__(self, buffer: Buffer, counters: Counters, *, largest_held_bytes: int = LARGEST_HELD_BYTES) -> None:
        self._buffer, self._counters = buffer, counters
        self._held_bytes = 0
        self._largest_held_bytes = largest_held_bytes

    async def Process(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One request. Yields nothing."""
        exchange: Exchange | None = Exchange()
        held = 0
        try:
            async for message in messages:
                if exchange is None:
                    continue
                exchange.take(message)
                self._held_bytes += exchange.size_bytes - held
                held = exchange.size_bytes
                if held > LARGEST_BYTES or self._held_bytes > self._largest_held_bytes:
                    self._count(exchange, "too_large" if held > LARGEST_BYTES else "crowded")
                    exchange = None
                elif exchange.complete:
                    self._hand_over(exchange)
                    exchange = None
                if exchange is None:
                    self._held_bytes -= held
                    held = 0
        finally:
            self._held_bytes -= held
            if exchange is not None:
                self._count(exchange, "cut")
        return
        yield  # makes this an asynchronous generator, which is what gRPC takes for a stream of answers

    def _hand_over(self, exchange: Exchange) -> None:
        if not exchange.answered:
            self._count(exchange, "refused")
        elif self._buffer.offer(exchange):
            self._count(exchange, "captured")
            self._counters.add("bytes", exchange.size_bytes)
        else:
            self._count(exchange, "full")

    def _count(self, exchange: Exchange, outcome: Outcome) -> None:
        lane = exchange.lane if exchange.lane in (*LANES, SHADOW) else NO_LANE
        self._counters.add_request(outcome, model=exchange.model, lane=lane)


async def open_server(stream: CaptureStream, address: str) -> Any:
    """A started gRPC server at `host:port`. Raises RuntimeError when the port is taken."""
    import grpc

    from visionloop.capture.messages import SERVICE, ProcessingRequest

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_BYTES), ("grpc.so_reuseport", 0)])
    process = grpc.stream_stream_rpc_method_handler(stream.Process, ProcessingRequest.FromString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Process": process})])
    server.add_insecure_port(address)
    await server.start()
    return server
