"""The client that does not block: the same calls, awaited."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from visionloop.project import Project
from visionloop.serving.client.call import AT_ONCE, Call, Endpoint, Images, Request, key_metadata, plan
from visionloop.serving.client.channel import DESCRIBE_SECONDS, config_request, open_channel
from visionloop.serving.client.failures import not_described
from visionloop.serving.client.messages import Answer
from visionloop.serving.client.model import Model, of_config, of_project
from visionloop.serving.client.retry import MOST_TRIES


class AsyncClient:
    """As `Client`, for one event loop: make it inside, close it, or use it with `async with`."""

    def __init__(
        self, url: str, model: Project | Model, *, key_file: Path | None = None, most_tries: int = MOST_TRIES
    ) -> None:
        from grpc import aio
        from tritonclient.grpc import service_pb2_grpc

        self.url = url
        self.model = of_project(model) if isinstance(model, Project) else model
        self._endpoint = Endpoint(url, self.model, most_tries, key_metadata(key_file))
        self._channel: Any = open_channel(aio, url)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def predict(
        self,
        images: Images,
        *,
        probe: bool = False,
        session: str | None = None,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> list[Answer]:
        """As `Client.predict`; a call that is cancelled cancels its requests."""
        call = plan(
            self._endpoint,
            images,
            probe=probe,
            session=session,
            deadline_seconds=deadline_seconds,
            request_id=request_id,
            traceparent=traceparent,
        )
        if call.in_order:
            return [answer for request in call.requests for answer in await self._send(request)]
        return await self._send_all(call)

    async def close(self) -> None:
        """Let go of the connection; what is under way ends unanswered."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_all(self, call: Call) -> list[Answer]:
        """The first failure ends the call: the others are cancelled."""
        tasks = [asyncio.create_task(self._in_turn(request)) for request in call.requests]
        try:
            return [answer for answers in await asyncio.gather(*tasks) for answer in answers]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_turn(self, request: Request) -> list[Answer]:
        async with self._turns:
            return await self._send(request)

    async def _send(self, request: Request) -> list[Answer]:
        import grpc

        message = request.message()
        while True:
            left = request.seconds_left()
            rpc = self._stub.ModelInfer(message, metadata=request.metadata, timeout=left)
            try:
                response = await rpc
            except grpc.RpcError as error:
                await asyncio.sleep(request.failed(error))
            else:
                return request.answered(response, dict(await rpc.initial_metadata()))


async def connect_async(
    url: str,
    model: str,
    *,
    labels: Sequence[str] | None = None,
    key_file: Path | None = None,
    most_tries: int = MOST_TRIES,
) -> AsyncClient:
    """As `connect`: `async with await connect_async(url, "fashion") as client`."""
    import grpc
    from grpc import aio
    from tritonclient.grpc import service_pb2_grpc

    metadata = key_metadata(key_file)
    async with open_channel(aio, url) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            said = await stub.ModelConfig(config_request(model), metadata=metadata, timeout=DESCRIBE_SECONDS)
        except grpc.RpcError as error:
            raise not_described(error, url, model) from None
    return AsyncClient(url, of_config(said.config, labels), key_file=key_file, most_tries=most_tries)
