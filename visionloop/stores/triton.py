"""One lane: a Triton server that loads, serves and tells. Its faults come out as errors that name lane and reason."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import StageError, StoreError
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.records import MemoryReading
from visionloop.serving import gauge
from visionloop.serving.cost import Runs
from visionloop.serving.repository import Entry, entry
from visionloop.settings import Settings

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

log = logging.getLogger(__name__)

LaneName = Literal["stable", "canary"]
DEADLINE_SECONDS = 10.0
OWN = "visionloop.."
"""How the models begin that the loop itself sends to a lane; no project can be called so."""
PRESENT = ("READY", "LOADING", "UNLOADING")
"""States of a model whose code may run; one whose process died is unloading until the server ends."""
Index = list[tuple[str, str, str]]
LOAD_SECONDS = 120.0
UNLOAD_SECONDS = 5.0
"""With a dead model process an unload never ends."""
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A lane that was restarted is found again at once, not after seconds of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
LATE = "StatusCode.DEADLINE_EXCEEDED"
UNREACHABLE = ("StatusCode.UNAVAILABLE", LATE, "StatusCode.CANCELLED")


class ModelRefused(StageError):
    """Triton would not load a model, or would not answer with it; the message carries its reason in one line."""


class Late(StoreError):
    """The server did not answer in time: it is busy, or frozen."""


@dataclass(frozen=True)
class ModelStatistics:
    """What one version did since the server started."""

    requests: int
    failures: int
    images: int


class Lane:
    """A lane by its name and address. Raises StoreError when the server is down, ModelRefused when it says no."""

    def __init__(self, name: LaneName, settings: Settings) -> None:
        self.name = name
        self.address = settings.need(f"{name}_grpc")
        self._settings = settings

    def entry(self, model: str) -> Entry:
        """The model's entry in this lane's repository."""
        self._settings.need("model_repository")
        assert self._settings.model_repository is not None
        return entry(self._settings.model_repository, self.name, model)

    def ready(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> bool:
        """Is the server up and ready?"""
        try:
            with self._speaking("ready"):
                return bool(self._client.is_server_ready(client_timeout=deadline_seconds))
        except StoreError:
            return False

    def load(self, model: str) -> None:
        """Load what the repository says; a version that was served before goes when the new one is in place."""
        log.info("lane %s: load %s", self.name, model)
        with self._speaking(model):
            self._client.load_model(model, client_timeout=LOAD_SECONDS)

    def load_sent(self, model: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load a model that lies in no repository: its configuration (JSON), and `file:<version>/<name>` -> content."""
        with self._speaking(model):
            self._client.load_model(model, config=config, files=dict(files), client_timeout=LOAD_SECONDS)

    def unload(self, model: str) -> None:
        """Stop serving; a model that is not loaded is fine."""
        log.info("lane %s: unload %s", self.name, model)
        with self._speaking(model):
            self._client.unload_model(model, client_timeout=UNLOAD_SECONDS)

    def served(self, model: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> int | None:
        """The version that this lane answers with, None when it has none ready."""
        return _served(model, self._index(model, deadline_seconds))

    def models(self) -> list[str]:
        """Names of the projects whose models are loaded."""
        return _projects(self._index("its models", DEADLINE_SECONDS), "READY")

    def infer(
        self, model: str, images: NDArray[np.uint8], *, version: int, deadline_seconds: float = DEADLINE_SECONDS
    ) -> NDArray[np.float32]:
        """Probabilities [N,K] float32 of images uint8 [N,H,W,C], straight from the lane, past the endpoint."""
        from tritonclient.grpc import InferInput, InferRequestedOutput

        tensor = InferInput(INPUT, list(images.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        with self._speaking(model):
            answer = self._client.infer(
                model,
                [tensor],
                model_version=str(version),
                outputs=[InferRequestedOutput(PROBABILITIES)],
                client_timeout=deadline_seconds,
            )
        probabilities: NDArray[np.float32] = answer.as_numpy(PROBABILITIES)
        return probabilities

    def statistics(self, model: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> dict[int, ModelStatistics]:
        """Version -> what it did since the server started; empty when the model is not loaded."""
        if self.served(model, deadline_seconds=deadline_seconds) is None:
            return {}
        return self._statistics(model, deadline_seconds)

    def _statistics(self, model: str, deadline_seconds: float) -> dict[int, ModelStatistics]:
        with self._speaking(model):
            answer = self._client.get_inference_statistics(model, client_timeout=deadline_seconds)
        return {
            int(line.version): ModelStatistics(
                requests=line.inference_stats.success.count,
                failures=line.inference_stats.fail.count,
                images=line.inference_count,
            )
            for line in answer.model_stats
        }

    def batches(self, model: str, version: int) -> dict[int, Runs]:
        """Images of a run -> runs of this version since it was loaded, and the seconds that they computed."""
        with self._speaking(model):
            answer = self._client.get_inference_statistics(model, str(version), client_timeout=DEADLINE_SECONDS)
        return {
            one.batch_size: Runs(
                count=one.compute_infer.count,
                seconds=(one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns) / 1e9,
            )
            for line in answer.model_stats
            for one in line.batch_stats
        }

    def memory(self, model: str, *, version: int, deadline_seconds: float = DEADLINE_SECONDS) -> MemoryReading:
        """What the server and this model hold resident now, read where the lane runs; also before it is loaded.

        `deadline_seconds` are each question's own: three are asked.
        """
        try:
            server, own, processes, started = self._gauged(model, version, deadline_seconds)
        except ModelRefused as error:
            if "unknown model" not in str(error):
                raise
            self.load_sent(gauge.NAME, gauge.config(), {gauge.FILE: gauge.source()})
            server, own, processes, started = self._gauged(model, version, deadline_seconds)
        index = self._index(model, deadline_seconds)
        served = _served(model, index) is not None
        done = self._statistics(model, deadline_seconds).get(version) if served else None
        return MemoryReading(
            requests=done.requests + done.failures if done else 0,
            server_bytes=server,
            model_bytes=own,
            processes=processes,
            server_started=started,
            others=len({*_projects(index, *PRESENT)} - {model}),
        )

    def _index(self, what: str, deadline_seconds: float) -> Index:
        """Name, version, state of each model that the server knows."""
        with self._speaking(what):
            found = self._client.get_model_repository_index(client_timeout=deadline_seconds)
        return [(line.name, line.version, line.state) for line in found.models]

    def _gauged(self, model: str, version: int, deadline_seconds: float) -> list[int]:
        from tritonclient.grpc import InferInput

        asked = InferInput(gauge.QUESTION, [2], "BYTES")
        asked.set_data_from_numpy(np.array([model.encode(), str(version).encode()], np.object_))
        with self._speaking(gauge.NAME):
            answer = self._client.infer(gauge.NAME, [asked], client_timeout=deadline_seconds)
        return [int(figure) for figure in answer.as_numpy(gauge.ANSWER)]

    @cached_property
    def _client(self) -> "InferenceServerClient":
        from tritonclient.grpc import InferenceServerClient

        return InferenceServerClient(self.address, channel_args=CHANNEL)

    @contextmanager
    def _speaking(self, model: str) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            reason = _one_line(error.message() or str(error))
            if error.status() in UNREACHABLE and "failed to load" not in reason and "unknown model" not in reason:
                fault = Late if error.status() == LATE else StoreError
                raise fault(f"Triton of the {self.name} lane at {self.address}: {reason}") from error
            raise ModelRefused(f"Triton of the {self.name} lane refused {model}: {reason}") from error


def open_lane(settings: Settings, name: LaneName) -> Lane:
    """The lane of this name."""
    return Lane(name, settings)


def _served(model: str, index: Index) -> int | None:
    ready = (int(version) for name, version, state in index if name == model and state == "READY")
    return max(ready, default=None)


def _projects(index: Index, *states: str) -> list[str]:
    return sorted({name for name, _, state in index if state in states and not name.startswith(OWN)})


def _one_line(text: str) -> str:
    """Triton's reasons bring a Python traceback along: the sentences without it."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not _is_trace(line))[:600]


def _is_trace(line: str) -> bool:
    return line in {"At:", "Traceback (most recent call last):"} or line.startswith(("/", 'File "'))
