"""How a request that was not answered reads: which model and version, what was sent, what was expected, and why not."""

from collections.abc import Mapping
from typing import Any

from visionloop.errors import StoreError

LONGEST_DETAIL = 300


class EndpointError(StoreError):
    """The endpoint did not answer a request; `code` is gRPC's name for why, `lane` the lane that failed if known.

    `refused`: nobody was there to take it, or to answer it: the endpoint itself was down, whatever its lanes do.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        lane: str | None,
        request_id: str | None = None,
        tries: int = 1,
        refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.lane = lane
        self.request_id = request_id
        self.tries = tries
        self.refused = refused


def heads_of(error: Any) -> dict[str, str]:
    """The metadata of a failed call, leading and trailing."""
    pairs = [*_pairs(error.initial_metadata()), *_pairs(error.trailing_metadata())]
    return {str(key): value for key, value in pairs if isinstance(value, str)}


def detail_of(error: Any) -> str:
    """The server's reason in one line."""
    return " ".join(str(error.details()).split())[:LONGEST_DETAIL]


def not_described(error: Any, url: str, model: str) -> EndpointError:
    """The endpoint did not say what a model is like."""
    code = error.code().name
    return EndpointError(
        f"the endpoint {url} did not describe {model}: {code}: {detail_of(error)}", code=code, lane=None
    )


def last_answered(versions: Mapping[str, int], lane: str | None) -> str:
    """Which version of the model it will have been: what this client was answered with last, "" before that."""
    known = {name: version for name, version in versions.items() if lane in (None, name)}
    return " and ".join(f"version {version} in lane {name or 'unknown'}" for name, version in sorted(known.items()))


def _pairs(metadata: Any) -> list[tuple[Any, Any]]:
    return [(pair[0], pair[1]) for pair in metadata or ()]
