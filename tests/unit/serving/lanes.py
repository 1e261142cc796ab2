"""Lanes, routes, registry and endpoint of one process: a release runs through the real client, ledger and folders.

A model is JSON: `{"bias": 0.1}` answers (brightness + bias, the rest); `{"broken": true}` does not load;
`{"image_ms": 3}` computes so long for an image. What its configuration does not allow is refused, as Triton does.
"""

import hashlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from tests.unit.stages.made import signing_keys, training_run
from visionloop import layout
from visionloop.errors import StoreError
from visionloop.packaging.signing import sign
from visionloop.project import Project, parse_project
from visionloop.records import Approval, Artifact, Candidate, MemoryReading, Parity, Release, record_id
from visionloop.serving.cost import Runs
from visionloop.serving.lane_stats import LaneCount
from visionloop.serving.memory import MIB
from visionloop.serving.repository import MODEL, Entry, entry
from visionloop.serving.triton_config import parse, render
from visionloop.settings import Settings
from visionloop.stages import approve, release
from visionloop.stores import Stores, connect
from visionloop.stores.registry import RegisteredVersion
from visionloop.stores.routes import Weights
from visionloop.stores.triton import Late, ModelRefused

from .endpoint import Asked, Failed, Said, endpoint

PROJECT = """\
project: p
task: {classes: [dark, bright], image: {height: 8, width: 8, channels: 1}}
suite: {scenarios: [{name: overall}]}
serving: {timeout_ms: 60000}
release:
  {approval: required, approvers: [ann, bob], shadow_images: 0, canary_percent: [50], step_requests: 20,
   max_latency_ratio: 50, max_error_rate: 0.2, max_disagreement: 0.2, max_slow_share: 0.5, max_probes: 1000}
"""
LEVELS = (0, 60, 200, 255)
"""Brightnesses of the golden samples."""


class Killed(BaseException):
    """The process is gone: nothing catches this."""


def probabilities(model: dict[str, Any], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a model says, [N,2]."""
    bright = np.clip(images.mean(axis=(1, 2, 3)) / 255 + model.get("bias", 0.0), 0, 1)
    return np.stack([1 - bright, bright], axis=1).astype(np.float32)


class FakeLane:
    """A lane over a real repository folder."""

    def __init__(self, name: str, repository: Path) -> None:
        self.name, self._repository = name, repository
        self.loaded: dict[str, tuple[int, dict[str, Any]]] = {}
        self.configs: dict[str, Any] = {}
        self.sent: list[str] = []
        """Models of the loop's own, from no repository."""
        self.address = "nowhere"
        self.runs: dict[tuple[str, int], dict[int, Runs]] = {}
        self.down = False
        self.asked: Counter[str] = Counter()
        """Requests since each model was loaded."""
        self.leaks_mib = 0
        """Of a model's own process, with each request."""
        self.dead = False
        """The model's own process ended; the server goes on."""
        self.started, self.others = 1_000, 0
        """When the server began, and other projects' models in it."""
        self.late = False
        """No answer comes in time; the server is well."""
        self.forgets = False
        """Loads without an error and then serves nothing, as Triton with a broken version folder."""

    def entry(self, model: str) -> Entry:
        return entry(self._repository, self.name, model)

    def load(self, model: str) -> None:
        self._check()
        at = self.entry(model)
        version = at.version()
        content = json.loads((at.folder / str(version) / MODEL).read_bytes())
        if content.get("broken"):
            raise ModelRefused(f"Triton of the {self.name} lane refused {model}: broken")
        if version is not None and not self.forgets:
            self.loaded[model] = version, content
            self.configs[model] = parse(at.config() or "")
            self.asked[model] = 0

    def load_sent(self, model: str, config: str, files: Mapping[str, bytes]) -> None:
        self._check()
        self.sent.append(model)

    def unload(self, model: str) -> None:
        self._check()
        self.loaded.pop(model, None)
        self.sent = [name for name in self.sent if name != model]

    def models(self) -> list[str]:
        self._check()
        return sorted(self.loaded)

    def served(self, model: str) -> int | None:
        self._check()
        return self.loaded[model][0] if model in self.loaded else None

    def infer(
        self, model: str, images: NDArray[np.uint8], *, version: int, deadline_seconds: float = 10.0
    ) -> NDArray[np.float32]:
        self._check()
        assert self.loaded[model][0] == version
        self.asked[model] += 1
        if self.dead:
            raise ModelRefused(f"Triton of the {self.name} lane refused {model}: Stub process 'p_0_0' is not healthy.")
        if self.late:
            raise Late(f"Triton of the {self.name} lane at nowhere: no answer in {deadline_seconds:.0f} s")
        config, content = self.configs[model], self.loaded[model][1]
        if len(images) > config.max_batch_size or list(images.shape[1:]) != list(config.input[0].dims):
            raise ModelRefused(f"Triton of the {self.name} lane refused {model}: {images.shape} is none of its batches")
        runs = self.runs.setdefault((model, version), {})
        known = runs.get(len(images), Runs())
        runs[len(images)] = Runs(known.count + 1, known.seconds + len(images) * content.get("image_ms", 1.0) / 1000)
        return probabilities(content, images)

    def batches(self, model: str, version: int) -> dict[int, Runs]:
        self._check()
        assert self.loaded[model][0] == version
        return dict(self.runs.get((model, version), {}))

    def start_anew(self) -> None:
        """As the supervisor does; what lies on disk is loaded again."""
        self.started += 1
        self.down = self.dead = False
        for model in list(self.loaded):
            self.loaded.pop(model)
            if self.entry(model).config():
                self.load(model)

    def ready(self, *, deadline_seconds: float = 10.0) -> bool:
        return not self.down

    def memory(self, model: str, *, version: int, deadline_seconds: float = 10.0) -> MemoryReading:
        """40 MiB for the server, and 60 for a model that is loaded, as its content says."""
        self._check()
        processes = int(model in self.loaded and not self.dead)
        mib = self.loaded[model][1].get("mib", 60) + self.leaks_mib * self.asked[model] if processes else 0
        return MemoryReading(
            requests=self.asked[model],
            server_bytes=40 * MIB,
            model_bytes=int(mib) * MIB,
            processes=processes,
            server_started=self.started,
            others=self.others,
        )

    def _check(self) -> None:
        if self.down:
            raise StoreError(f"Triton of the {self.name} lane at nowhere: down")


class FakeRoutes:
    """The weights, as a table in memory."""

    def __init__(self) -> None:
        self.weights: dict[str, Weights] = {}
        self.history: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.healthy = True

    def current(self, model: str) -> Weights | None:
        return self.weights.get(model)

    def set(
        self,
        project: Project,
        *,
        stable: int,
        canary: int,
        mirrored: bool = False,
        allowed: Callable[[], object] = lambda: None,
    ) -> Weights:
        allowed()
        self.weights[project.name] = Weights(stable, canary, mirrored)
        self.history.append((stable, canary))
        return self.weights[project.name]

    def wait_healthy(self, model: str, lane: str, *, seconds: float) -> bool:
        return self.healthy

    def lane_stats(self, model: str) -> dict[str, LaneCount]:
        return {lane: LaneCount(self.counts[lane], self.errors[lane]) for lane in ("stable", "canary")}


class FakeRegistry:
    """Aliases and tags."""

    def __init__(self) -> None:
        self.alias: int | None = None
        self.tags: dict[int, dict[str, str]] = {}
        self.down = False

    def champion(self, project: str) -> RegisteredVersion | None:
        return RegisteredVersion(self.alias, "") if self.alias else None

    def set_champion(self, project: str, version: int | None) -> None:
        self._check()
        self.alias = version

    def tag(self, project: str, version: int, tags: dict[str, str]) -> None:
        self._check()
        self.tags.setdefault(version, {}).update(tags)

    def _check(self) -> None:
        if self.down:
            raise StoreError("MLflow at nowhere cannot be reached")


class Fatal:
    """Passes calls on; the process dies right after the n-th of those that change something."""

    def __init__(self, inner: Any, changing: tuple[str, ...], happened: Callable[[], None]) -> None:
        self._inner, self._changing, self._happened = inner, changing, happened

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._changing:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            result = found(*arguments, **options)
            self._happened()
            return result

        return call


class World:
    """One project on lanes of this process."""

    def __init__(self, folder: Path, *, project: str = PROJECT) -> None:
        self.project = parse_project(project, Path("project.yaml"))
        self.stable, self.canary = (FakeLane(name, folder / "models") for name in ("stable", "canary"))
        self.routes, self.registry = FakeRoutes(), FakeRegistry()
        self.broken: dict[str, Failed] = {}
        """Lane -> how it fails requests."""
        (folder / "models").mkdir(parents=True)
        private, public = signing_keys(folder)
        self._key: Path | None = private
        self.settings = Settings(
            home=folder,
            store=f"file://{folder}/store",
            model_repository=folder / "models",
            signing_key=private,
            verify_key=public,
        )
        self._draw = random.Random(0)
        self.stores = self.connect()

    @contextmanager
    def serving(self) -> Iterator["World"]:
        """With the endpoint before the lanes."""
        with endpoint(self._answer) as url:
            self.settings = self.settings.model_copy(update={"endpoint_url": url})
            self.stores = self.connect()
            yield self

    def keep(self) -> None:
        """Remember everything as it is now."""
        for part in ("store", "models"):
            shutil.copytree(self.settings.home / part, self.settings.home / "kept" / part)
        self._kept = deepcopy([vars(each) for each in self._parts()])

    def again(self) -> None:
        """Everything as it was when `keep` was called."""
        for part in ("store", "models"):
            shutil.rmtree(self.settings.home / part)
            shutil.copytree(self.settings.home / "kept" / part, self.settings.home / part)
        for each, values in zip(self._parts(), deepcopy(self._kept), strict=True):
            vars(each).clear()
            vars(each).update(values)

    def killed_at_each_change(self, work: Callable[[Stores], object]) -> Iterator[int]:
        """For each change that `work` makes: the world as it is now, and then as a process left it that died there."""
        self.keep()
        for number in range(1, 100):
            self.again()
            try:
                work(self.connect(dies_after=number))
            except Killed:
                yield number
            else:
                assert number > 4, "hardly anything was changed"
                return

    def _parts(self) -> tuple[FakeLane, FakeLane, FakeRoutes, FakeRegistry]:
        return self.stable, self.canary, self.routes, self.registry

    def connect(self, *, dies_after: int | None = None, then: Callable[[], None] | None = None) -> Stores:
        """Stores as another process opens them; after so many changes it dies, or something else happens."""
        stores, left = connect(self.settings), [dies_after]

        def happened() -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    if then is None:
                        raise Killed
                    then()

        objects = Fatal(stores.objects, ("put", "put_new", "replace"), happened)
        lanes = {lane.name: Fatal(lane, ("load", "unload"), happened) for lane in (self.stable, self.canary)}
        stores.__dict__.update(
            objects=objects,
            **lanes,
            routes=Fatal(self.routes, ("set",), happened),
            registry=Fatal(self.registry, ("set_champion", "tag"), happened),
        )
        return stores

    def candidate(
        self, version: int, *, golden: dict[str, Any] | None = None, request: str | None = None, **model: Any
    ) -> str:
        """Package a model; returns the record's URI.

        `golden` is the model that the offline answers come from, `request` the retrain request it was trained for.
        """
        shape, shown = self.project.task.image, io.BytesIO()
        images = np.stack([np.full((shape.height, shape.width, shape.channels), level, np.uint8) for level in LEVELS])
        np.savez(shown, images=images, probabilities=probabilities(golden or model, images))
        config = render(self.project, version, golden_sha256=hashlib.sha256(shown.getvalue()).hexdigest())
        files = {MODEL: json.dumps(model).encode(), "config.pbtxt": config.encode(), "golden.npz": shown.getvalue()}
        key = record_id("candidate", "p", version=version, model=model)
        artifacts = {name: self._artifact(key, name, data) for name, data in files.items()}
        record = Candidate(
            id=key,
            project="p",
            training_run=self._training_run(key, request),
            evaluation="e",
            gate_decision="g",
            snapshot="s",
            model_name="p",
            version=version,
            model_sha256=artifacts[MODEL].sha256,
            artifacts=artifacts,
            signature=self._signature(files),
            classes=self.project.task.classes,
            image_shape=images.shape[1:],
            parity=Parity(samples=4, max_abs_difference=0, p99_abs_difference=0, disagreements=0),
        )
        return self.stores.ledger.uri(self.stores.ledger.put(record))

    def sign_with(self, key: Path | None) -> None:
        """Another key from now on, or none."""
        self._key = key

    def _signature(self, files: dict[str, bytes]) -> str:
        return sign({name: files[name] for name in (MODEL, "config.pbtxt")}, self._key) if self._key else ""

    def approve(self, candidate: str, **said: Any) -> Approval:
        """As one of the approvers."""
        inputs = {"candidate": candidate, "decision": "approved", "by": "ann", "reason": "better", **said}
        return approve.run(self.project, approve.Inputs.model_validate(inputs), self.stores)

    def inputs(self, candidate: str, **said: Any) -> release.Inputs:
        """Of a release of a candidate that is decided now."""
        return release.Inputs(candidate=candidate, approval=self.stores.ledger.uri(self.approve(candidate, **said)))

    def underway(self) -> release.Inputs:
        """Of a release of version 2 that is through its preflight."""
        inputs = self.inputs(self.candidate(2, bias=0.1))
        release.preflight(self.project, inputs, self.stores)
        return inputs

    def go(self, inputs: release.Inputs, stores: Stores | None = None) -> Release:
        """All three functions, as the DAG runs them."""
        for function in (release.preflight, release.shadow, release.canary, release.promote):
            done = function(self.project, inputs, stores or self.stores)
        assert isinstance(done, Release)
        return done

    def release(self, version: int, **model: Any) -> Release:
        """Package, approve, release."""
        return self.go(self.inputs(self.candidate(version, **model)))

    def releases(self) -> list[Release]:
        """All records."""
        return self.stores.ledger.all(Release, "p")

    def _training_run(self, key: str, request: str | None) -> str:
        run = training_run(key, retrain_request=request)
        return self.stores.ledger.uri(self.stores.ledger.put(run))

    def _artifact(self, key: str, name: str, data: bytes) -> Artifact:
        uri = self.stores.objects.put(layout.artifact("p", "candidate", key, name), data)
        return Artifact(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def _answer(self, asked: Asked) -> Said | Failed:
        """As the endpoint: by weight."""
        weights = self.routes.current(asked.model)
        if weights is None:
            return Failed(grpc.StatusCode.NOT_FOUND, "unknown model")
        lane = self.canary if self._draw.random() * 100 < weights.canary else self.stable
        self.routes.counts[lane.name] += 1
        if lane.name in self.broken:
            self.routes.errors[lane.name] += 1
            return self.broken[lane.name]
        version, model = lane.loaded[asked.model]
        lane.asked[asked.model] += 1
        return Said(lane.name, version, probabilities(model, asked.images))
