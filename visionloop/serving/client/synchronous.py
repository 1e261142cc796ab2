"""The client that waits: threads may share it."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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
from visionloop.settings import Settings


class Client:
    """The endpoint, for one model. Threads may share it; close it, or use it as a context manager.

    `most_tries` is for each request, 1 for no retry; `key_file` holds the API key of an endpoint that asks for one.
    """

    def __init__(
        self, url: str, model: Project | Model, *, key_file: Path | None = None, most_tries: int = MOST_TRIES
    ) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        self.url = url
        self.model = of_project(model) if isinstance(model, Project) else model
        self._endpoint = Endpoint(url, self.model, most_tries, key_metadata(key_file))
        self._channel: Any = open_channel(grpc, url)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="predict")

    def predict(
        self,
        images: Images,
        *,
        probe: bool = False,
        session: str | None = None,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> list[Answer]:
        """Answers for uint8 images [N,H,W,C] (or a list of [H,W,C]), in their order, however many.

        They go in requests of `serving.max_batch_size`, a few at a time. One `session` stays in one lane. A
        `request_id` of yours comes back in the answers and stands in the captures (`ID.1`, `ID.2` where several
        requests are needed); without one, one is made. `traceparent` (W3C) is passed on. `deadline_seconds` is for the
        whole call; without it, each request has the project's time-out. `probe` marks the loop's own requests: never
        captured, never tried twice, one after the other.

        Raises DataError for images of another shape, EndpointError when a request is not answered in time.
        """
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
            return [answer for request in call.requests for answer in self._send(request)]
        return self._send_all(call)

    def close(self) -> None:
        """Let go of the connection; what is under way ends unanswered."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send_all(self, call: Call) -> list[Answer]:
        """The first failure ends the call: what has not begun is not sent."""
        futures = [self._pool.submit(self._send, request) for request in call.requests]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in futures if future in done and future.exception()), None)
            return failed.result() if failed else [answer for future in futures for answer in future.result()]
        finally:
            call.given_up = True
            for future in futures:
                future.cancel()

    def _send(self, request: Request) -> list[Answer]:
        import grpc

        message = request.message()
        while True:
            left = request.seconds_left()
            try:
                response, rpc = self._stub.ModelInfer.with_call(message, metadata=request.metadata, timeout=left)
            except grpc.RpcError as error:
                time.sleep(request.failed(error))
            else:
                return request.answered(response, dict(rpc.initial_metadata()))


def open_client(settings: Settings, project: Project, *, most_tries: int = MOST_TRIES) -> Client:
    """A client of the endpoint that the settings name, with the key that they name."""
    return Client(settings.need("endpoint_url"), project, key_file=settings.own_key_file, most_tries=most_tries)


def connect(
    url: str,
    model: str,
    *,
    labels: Sequence[str] | None = None,
    key_file: Path | None = None,
    most_tries: int = MOST_TRIES,
) -> Client:
    """A client without a project file: what the model takes and answers is asked of the endpoint.

    Labels come with the model; `labels` are for one that has none, or other names. Raises EndpointError when the
    endpoint does not know the model.
    """
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    metadata = key_metadata(key_file)
    with open_channel(grpc, url) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            said = stub.ModelConfig(config_request(model), metadata=metadata, timeout=DESCRIBE_SECONDS)
        except grpc.RpcError as error:
            raise not_described(error, url, model) from None
    return Client(url, of_config(said.config, labels), key_file=key_file, most_tries=most_tries)
