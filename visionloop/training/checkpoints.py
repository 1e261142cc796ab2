"""Checkpoints in the object store: weights, optimiser and schedule; the last whole one is found again.

`epoch-NNNNNN/` holds `weights.safetensors`, `optimizer.pt`, and `state.json`, which is written last and vouches for
both by SHA-256. What has no state, or does not match it, was never finished or is damaged, and does not count.
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from pydantic import ValidationError

from visionloop.errors import IntegrityError, NotFound
from visionloop.records import Frozen

log = logging.getLogger(__name__)
KEPT = 2
STATE = re.compile(r"epoch-(\d{6})/state\.json$")


class Listed(Protocol):
    """A line of a listing."""

    @property
    def key(self) -> str:
        """Where it lies."""


class Blobs(Protocol):
    """What checkpoints ask of an object store."""

    def put(self, key: str, data: bytes, content_type: str = ...) -> str:
        """Write; returns the URI."""

    def get(self, key: str) -> bytes:
        """Read; raises NotFound."""

    def scan(self, prefix: str) -> Iterable[Listed]:
        """List."""

    def delete(self, key: str) -> None:
        """Remove."""

    def uri(self, key: str) -> str:
        """Absolute form of a key."""


class EpochMetrics(Frozen):
    """What one epoch showed, and when it ended (milliseconds since 1970, UTC)."""

    epoch: int
    at_ms: int
    values: dict[str, float]


class TrainState(Frozen):
    """Where a training stands after `epoch` epochs."""

    epoch: int
    epochs: int
    samples_seen: int
    seconds: float
    device: str
    precision: str
    history: list[EpochMetrics]
    weights_sha256: str = ""
    optimizer_sha256: str = ""


class Checkpoint(Frozen):
    """A state with the bytes that it vouches for."""

    state: TrainState
    weights: bytes
    optimizer: bytes


class Checkpoints:
    """The checkpoints of one training run, below one prefix."""

    def __init__(self, blobs: Blobs, prefix: str) -> None:
        self._blobs = blobs
        self._prefix = prefix

    def save(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, then forget all but the last ones; returns the URI of the weights."""
        folder = self._folder(checkpoint.state.epoch)
        digests = {"weights_sha256": _sha256(checkpoint.weights), "optimizer_sha256": _sha256(checkpoint.optimizer)}
        uri = self._blobs.put(f"{folder}weights.safetensors", checkpoint.weights)
        self._blobs.put(f"{folder}optimizer.pt", checkpoint.optimizer)
        state = checkpoint.state.model_copy(update=digests)
        self._blobs.put(f"{folder}state.json", state.model_dump_json(indent=1).encode(), "application/json")
        for epoch in self._epochs()[KEPT:]:
            self._forget(epoch)
        return uri

    def last(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None."""
        for epoch in self._epochs():
            try:
                return self.read(epoch)
            except (IntegrityError, NotFound) as error:
                log.warning("checkpoint of epoch %d is passed over: %s", epoch, error)
        return None

    def read(self, epoch: int) -> Checkpoint:
        """One checkpoint. Raises NotFound, or IntegrityError when it is damaged."""
        folder = self._folder(epoch)
        try:
            state = TrainState.model_validate_json(self._blobs.get(f"{folder}state.json"))
        except ValidationError as error:
            raise IntegrityError(f"{self._blobs.uri(folder)}state.json cannot be read: {error}") from None
        weights, optimizer = self._blobs.get(f"{folder}weights.safetensors"), self._blobs.get(f"{folder}optimizer.pt")
        if (_sha256(weights), _sha256(optimizer)) != (state.weights_sha256, state.optimizer_sha256):
            raise IntegrityError(f"{self._blobs.uri(folder)} does not match the digests in its state.json")
        return Checkpoint(state=state, weights=weights, optimizer=optimizer)

    def uri(self, epoch: int) -> str:
        """Where the weights of an epoch lie."""
        return self._blobs.uri(f"{self._folder(epoch)}weights.safetensors")

    def _folder(self, epoch: int) -> str:
        return f"{self._prefix}epoch-{epoch:06d}/"

    def _epochs(self) -> list[int]:
        """Epochs with a state, newest first."""
        found = (STATE.search(item.key) for item in self._blobs.scan(self._prefix))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _forget(self, epoch: int) -> None:
        for name in ("state.json", "optimizer.pt", "weights.safetensors"):
            self._blobs.delete(self._folder(epoch) + name)


def pack(state: dict[str, Any]) -> bytes:
    """Optimiser and schedule as bytes that `unpack` reads without running code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` wrote (tensors and plain values only)."""
    found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
