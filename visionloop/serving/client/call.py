"""One call of a client: its images cut into requests, what goes along with each, and what becomes of each try.

No IO: the clients send, wait and sleep; a `Request` says for how long, and whether once more.
"""

import math
import random
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import DataError
from visionloop.serving.client import failures, messages
from visionloop.serving.client.failures import EndpointError
from visionloop.serving.client.messages import REQUEST_ID_HEADER, Answer
from visionloop.serving.client.model import Model
from visionloop.serving.client.retry import MOST_TRIES, pause_before_retry
from visionloop.serving.envoy_limits import KEY_HEADER
from visionloop.serving.envoy_routes import LANE_HEADER, PROBE_HEADER, SESSION_HEADER
from visionloop.serving.keys import read_key

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]

AT_ONCE = 4
"""Requests in flight of the calls that need several: enough to keep a lane busy, few enough to leave others a turn."""
TRACE_HEADER = "traceparent"
PRINTABLE = re.compile(r"[\x21-\x7e]{1,256}")
TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2."""


@dataclass
class Endpoint:
    """What all calls of a client share."""

    url: str
    model: Model
    most_tries: int = MOST_TRIES
    key: list[tuple[str, str]] = field(default_factory=list, repr=False)
    """The API key, as metadata."""
    versions: dict[str, int] = field(default_factory=dict)
    """Lane -> the version that it last answered with."""


@dataclass
class Call:
    """One call of `predict`."""

    requests: list["Request"]
    in_order: bool
    """One after the other, as probes are."""
    given_up: bool = False
    """A request of it failed: the others need not begin."""


def plan(
    endpoint: Endpoint,
    images: Images,
    *,
    probe: bool = False,
    session: str | None = None,
    deadline_seconds: float | None = None,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> Call:
    """Check everything and cut it up. Raises DataError before anything is sent."""
    array = messages.checked(endpoint.model, images)
    metadata = _metadata(endpoint, probe, session, traceparent)
    if deadline_seconds is not None and not 0 < deadline_seconds < math.inf:
        raise DataError(f"expected a deadline of more than 0 seconds, found {deadline_seconds}")
    ends = None if deadline_seconds is None else time.monotonic() + deadline_seconds
    step = endpoint.model.images_per_request
    parts = [array[start : start + step] for start in range(0, len(array), step)]
    ids = _ids(request_id, len(parts))
    call = Call([], in_order=probe or len(parts) == 1)
    call.requests += [
        Request(endpoint, call, part, one, [*metadata, (REQUEST_ID_HEADER, one)], ends, 1 if probe else None)
        for part, one in zip(parts, ids, strict=True)
    ]
    return call


class Request:
    """One request of a call, through all of its tries."""

    def __init__(
        self,
        endpoint: Endpoint,
        call: Call,
        images: NDArray[np.uint8],
        request_id: str,
        metadata: list[tuple[str, str]],
        ends: float | None,
        most_tries: int | None,
    ) -> None:
        self.metadata = metadata
        self._endpoint, self._call = endpoint, call
        self._images, self._id = images, request_id
        self._ends, self._most_tries = ends, most_tries or endpoint.most_tries
        self._tries = 0
        self._began = 0.0

    def message(self) -> Any:
        """Begin: its time runs from here, unless the call has a deadline."""
        self._began = time.monotonic()
        if self._ends is None:
            self._ends = self._began + self._endpoint.model.timeout_seconds
        return messages.encode(self._endpoint.model, self._images)

    def seconds_left(self) -> float:
        """Before each try. Raises EndpointError when there is nothing left, or the call was given up meanwhile."""
        assert self._ends is not None
        left = self._ends - time.monotonic()
        if self._call.given_up:
            raise self._error("CANCELLED", "another request of this call failed", None)
        if left <= 0:
            raise self._error("DEADLINE_EXCEEDED", "the call's time was over before it was sent", None)
        self._tries += 1
        return left

    def answered(self, response: Any, heads: Mapping[str, str]) -> list[Answer]:
        """Raises EndpointError for an answer that is none."""
        latency_ms = (time.monotonic() - self._began) * 1000
        lane = heads.get(LANE_HEADER)
        try:
            answers = messages.decode(
                self._endpoint.model,
                response,
                heads,
                sent=len(self._images),
                request_id=self._id,
                latency_ms=latency_ms,
            )
        except ValueError as error:
            raise self._error("DATA_LOSS", str(error), lane) from None
        self._endpoint.versions[answers[0].lane] = answers[0].version
        return answers

    def failed(self, error: Any) -> float:
        """The pause before the next try in seconds. Raises EndpointError where there is none."""
        assert self._ends is not None
        code, heads = error.code().name, failures.heads_of(error)
        pause = pause_before_retry(
            code,
            tries=self._tries,
            left_seconds=self._ends - time.monotonic(),
            luck=random.random(),  # noqa: S311 - spreads clients, guards nothing
            heads=heads,
            most_tries=self._most_tries,
        )
        if pause is None or self._call.given_up:
            refused = code == "UNAVAILABLE" and not heads  # what the endpoint says itself has a head
            raise self._error(code, failures.detail_of(error), heads.get(LANE_HEADER), refused=refused)
        return pause

    def _error(self, code: str, detail: str, lane: str | None, *, refused: bool = False) -> EndpointError:
        endpoint, model = self._endpoint, self._endpoint.model
        version = failures.last_answered(endpoint.versions, lane)
        facts = [
            f"sent {self._images.dtype} {list(self._images.shape)}",
            f"expected {model.expected}, at most {model.images_per_request} of them",
            *([f"lane {lane}"] if lane else []),
            *([f"last answered by {version}"] if version else []),
            *([f"tried {self._tries} times"] if self._tries > 1 else []),
        ]
        text = (
            f"request {self._id} ({'; '.join(facts)}): the endpoint {endpoint.url} did not answer for {model.name}: "
            f"{code}: {detail}"
        )
        return EndpointError(text, code=code, lane=lane, request_id=self._id, tries=self._tries, refused=refused)


def _metadata(endpoint: Endpoint, probe: bool, session: str | None, traceparent: str | None) -> list[tuple[str, str]]:
    metadata = [(PROBE_HEADER, "1")] if probe else []
    if session is not None:
        metadata.append((SESSION_HEADER, _printable("session", session)))
    if traceparent is not None:
        if not TRACE.fullmatch(traceparent):
            raise DataError(f"expected a W3C traceparent 00-<32 hex>-<16 hex>-<2 hex>, found {traceparent[:80]!r}")
        metadata.append((TRACE_HEADER, traceparent))
    return [*metadata, *endpoint.key]


def key_metadata(path: Path | None) -> list[tuple[str, str]]:
    """The API key in a file, as it goes along with a request. Raises ConfigError."""
    return [] if path is None else [(KEY_HEADER, read_key(path))]


def _ids(request_id: str | None, count: int) -> list[str]:
    """The caller's own where one request is enough; each has one of its own where there are several."""
    first = uuid.uuid4().hex if request_id is None else _printable("request id", request_id)
    return [first] if count == 1 else [f"{first}.{number}" for number in range(1, count + 1)]


def _printable(what: str, text: str) -> str:
    if not PRINTABLE.fullmatch(text):
        raise DataError(f"expected a {what} of 1 to 256 printable ASCII characters, found {text[:80]!r}")
    return text
