"""A project on real lanes and a real endpoint, whose candidates are tiny models instead of trained ones."""

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionloop import layout
from visionloop.errors import VisionLoopError
from visionloop.packaging.signing import sign
from visionloop.project import Project
from visionloop.records import Approval, Artifact, Candidate, Parity, Release
from visionloop.serving.client import Client
from visionloop.serving.triton_config import render
from visionloop.stages import approve, release
from visionloop.stores import Stores, connect
from visionloop.stores.registry import RegisteredVersion

from . import tiny
from .servers import Servers


@dataclass
class MemoryRegistry:
    """What a release asks of the registry, in memory: MLflow has tests of its own."""

    aliases: dict[str, int] = field(default_factory=dict)
    tags: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)

    def champion(self, project: str) -> RegisteredVersion | None:
        version = self.aliases.get(project)
        return RegisteredVersion(version, "") if version else None

    def set_champion(self, project: str, version: int | None) -> None:
        self.aliases.pop(project, None)
        if version is not None:
            self.aliases[project] = version

    def tag(self, project: str, version: int, tags: dict[str, str]) -> None:
        self.tags.setdefault((project, version), {}).update(tags)


class World:
    """One project on servers that others may share."""

    def __init__(self, servers: Servers, project: Project) -> None:
        self.servers, self.project = servers, project
        self.registry = MemoryRegistry()
        verify_key = servers.settings.verify_key
        assert verify_key is not None
        self._key = verify_key.with_name("signing-key.pem")
        self.stores = self.connect()

    def connect(self) -> Stores:
        """The stores as another process would open them."""
        stores = connect(self.servers.settings)
        stores.__dict__["registry"] = self.registry
        return stores

    def candidate(
        self,
        version: int,
        *,
        key: str | None = None,
        corrupt: bool = False,
        wrong_golden: bool = False,
        golden_images: np.ndarray | None = None,
        training_run: str = "none",
        **model,
    ) -> str:
        """Package a tiny model; returns the record's URI. `golden_images`: others than of all brightnesses."""
        name, objects = self.project.name, self.stores.objects
        path = tiny.tiny_onnx(self.servers.folder / f"{name}-v{version}.onnx", **model)
        shown = tiny.tiny_onnx(self.servers.folder / "other.onnx", flipped=True) if wrong_golden else path
        golden = tiny.golden_npz(shown, tiny.images(40, seed=version) if golden_images is None else golden_images)
        data = b"this is no model" if corrupt else path.read_bytes()
        files = {"model.onnx": data, "config.pbtxt": render(self.project, version).encode(), "golden.npz": golden}
        key = key or f"v{version}"
        artifacts = {
            file: Artifact(
                uri=objects.put(layout.artifact(name, "candidate", key, file), content),
                sha256=hashlib.sha256(content).hexdigest(),
                size_bytes=len(content),
            )
            for file, content in files.items()
        }
        record = Candidate(
            id=key,
            project=name,
            training_run=training_run,
            evaluation="e",
            gate_decision="g",
            snapshot="s",
            model_name=name,
            version=version,
            model_sha256=artifacts["model.onnx"].sha256,
            artifacts=artifacts,
            signature=sign({name: files[name] for name in ("model.onnx", "config.pbtxt")}, self._key),
            classes=tiny.CLASSES,
            image_shape=(tiny.SIDE, tiny.SIDE, 1),
            parity=Parity(samples=1, max_abs_difference=0, p99_abs_difference=0, disagreements=0),
        )
        return self.stores.ledger.uri(self.stores.ledger.put(record))

    def approve(self, candidate: str, decision: str = "approved") -> Approval:
        """Decide as nobody in particular: the project says `automatic`."""
        inputs = approve.Inputs(candidate=candidate, decision=decision, by="visionloop", reason="t", mode="automatic")
        return approve.run(self.project, inputs, self.stores)

    def inputs(self, candidate: str) -> release.Inputs:
        """Of a release of a candidate that is approved now."""
        return release.Inputs(candidate=candidate, approval=self.stores.ledger.uri(self.approve(candidate)))

    def release(self, version: int, **model) -> Release:
        """The whole way."""
        inputs = self.inputs(self.candidate(version, **model))
        for stage in (release.preflight, release.shadow, release.canary, release.promote):
            done = stage(self.project, inputs, self.stores)
        assert isinstance(done, Release)
        return done

    def versions(self, requests: int = 40) -> Counter:
        """(lane, version) -> how many of so many requests it answered."""
        found = Counter()
        with Client(self.servers.settings.endpoint_url, self.project) as client:
            for _ in range(requests):
                answer = client.predict(tiny.images(1), probe=True)[0]
                found[answer.lane, answer.version] += 1
        return found


class Traffic:
    """Requests while something else happens; a context manager. Failures are kept, and what each lane answered.

    `pause_seconds` between two requests.
    """

    def __init__(
        self, world: World, *, batch: np.ndarray | None = None, pause_seconds: float = 0.0, most_tries: int = 1
    ) -> None:
        self._world = world
        self._most_tries = most_tries
        self._batch = tiny.images(3, seed=9) if batch is None else batch
        self._pause_seconds = pause_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.seen: Counter = Counter()
        self._new: set = set()
        self.failures: list[str] = []
        self.slowest_ms = 0.0
        self.answers: dict[str, list[np.ndarray]] = {"stable": [], "canary": []}
        """Lane -> probabilities [N,K] of each request."""

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(20)

    def take(self) -> set:
        """Which (lane, version) have answered since the last call."""
        taken, self._new = self._new, set()
        return taken

    def _send(self) -> None:
        url, project = self._world.servers.settings.endpoint_url, self._world.project
        with Client(url, project, most_tries=self._most_tries) as client:
            while not self._end.is_set():
                try:
                    found = client.predict(self._batch)
                    self.seen[found[0].lane, found[0].version] += 1
                    self.slowest_ms = max(self.slowest_ms, found[0].latency_ms)
                    self._new.add((found[0].lane, found[0].version))
                    self.answers[found[0].lane].append(np.stack([answer.probabilities for answer in found]))
                except VisionLoopError as error:
                    self.failures.append(str(error))
                    time.sleep(0.01)
                time.sleep(self._pause_seconds)


def model_file(servers: Servers, name: str, version: int) -> Path:
    """Where `World.candidate` left the model."""
    return servers.folder / f"{name}-v{version}.onnx"
