"""The second half of the loop on a folder: a Lance dataset of corners, models of known quality, their records."""

import hashlib
from functools import cache
from pathlib import Path

import torch

from tests.unit.monitoring.world import add_snapshot, fit_model
from tests.unit.stages.made import signing_keys, training_run
from tests.unit.stages.registry import MemoryRegistry
from tests.unit.training.shapes import TASK, ignore, recipe, samples
from visionloop import layout
from visionloop.packaging.signing import sign
from visionloop.project import Project, parse_project
from visionloop.records import Artifact, Candidate, Evaluation, Parity, Snapshot
from visionloop.serving.triton_config import render
from visionloop.settings import Settings
from visionloop.stages import evaluate
from visionloop.stores import Stores, connect
from visionloop.training.loop import Shard, train
from visionloop.training.model import Architecture, build, to_bytes

TEXT = """\
project: corners
task:
  classes: [top-left, top-right, bottom-left, bottom-right]
  image: {height: 28, width: 28, channels: 1}
training: {epochs: 2, batch_size: 32, learning_rate: 0.002, precision: fp32, augment: []}
suite:
  scenarios:
    - {name: overall, severity: critical, at_least: 0.8, not_worse_by: 0.02}
    - {name: camera-one, severity: major, where: {camera: one}, not_worse_by: 0.05}
    - {name: noise, severity: info, corruption: gaussian_noise, corruption_severity: 5, at_least: 1.0}
packaging: {variants: [fp32]}
release: {approval: automatic}
"""
IMAGES = 500
"""Of a snapshot: three fifths are for training, two for the test."""


class World:
    """Stores over a folder, and the registry's memory."""

    def __init__(self, folder: Path, images: int = IMAGES) -> None:
        torch.set_num_threads(1)
        self.images = images
        self.project = a_project()
        self.registry = MemoryRegistry()
        private, public = signing_keys(folder)
        self._key = private
        self.settings = Settings(
            home=folder, projects=folder, store=f"file://{folder}/store", signing_key=private, verify_key=public
        )
        self.stores = self.connect()

    def connect(self) -> Stores:
        """The stores as another process would open them."""
        stores = connect(self.settings)
        stores.__dict__["registry"] = self.registry
        return stores

    def snapshot(self, batch: str = "one", seed: int = 0) -> Snapshot:
        """A snapshot of real rows; `batch` is the camera too."""
        made = samples(self.images, seed)
        return add_snapshot(self.project, self.stores, batch, made.images, made.targets)

    def training_run(self, snapshot: Snapshot, weights: bytes | None = None, name: str = "t1") -> str:
        """URI of a training run whose checkpoint is this model (a good one)."""
        weights = good() if weights is None else weights
        folder = layout.checkpoints(self.project.name, name)
        uri = self.stores.objects.put(f"{folder}epoch-000002/weights.safetensors", weights)
        record = training_run(
            name,
            project=self.project.name,
            inputs={"snapshot": self.stores.ledger.uri(snapshot)},
            seed=3,
            snapshot=self.stores.ledger.uri(snapshot),
            mlflow_run_id=self.registry.run(self.project.name, name, name=name),
            checkpoint_uri=uri,
            checkpoint_sha256=hashlib.sha256(weights).hexdigest(),
            epochs=2,
            samples_seen=600,
        )
        return self.stores.ledger.uri(self.stores.ledger.put(record))

    def evaluation(self, training_run: str, project: Project | None = None) -> Evaluation:
        """The stage's."""
        return evaluate.run(project or self.project, evaluate.Inputs(training_run=training_run), self.connect())

    def champion(self, model: bytes, golden: bytes = b"", **changes: object) -> Candidate:
        """A released candidate that serves this ONNX model."""
        number = len(self.registry.registered) + 1
        key = f"champion-{number}"
        config = render(self.project, number, golden_sha256=hashlib.sha256(golden).hexdigest())
        files = {"model.onnx": model, "config.pbtxt": config.encode(), "golden.npz": golden}
        artifacts = {name: self._artifact(key, name, data) for name, data in files.items()}
        values = {
            "id": key,
            "project": self.project.name,
            "training_run": "t0",
            "evaluation": "e0",
            "gate_decision": "g0",
            "snapshot": "s0",
            "model_name": self.project.name,
            "version": number,
            "model_sha256": artifacts["model.onnx"].sha256,
            "artifacts": artifacts,
            "signature": sign({name: files[name] for name in ("model.onnx", "config.pbtxt")}, self._key),
            "classes": self.project.task.classes,
            "image_shape": (28, 28, 1),
            "parity": Parity(samples=1, max_abs_difference=0.0, p99_abs_difference=0.0, disagreements=0),
            **changes,
        }
        candidate = self.stores.ledger.put(Candidate.model_validate(values))
        run = self.registry.run(self.project.name, "t0", name="t0")
        self.registry.register(
            self.project.name, self.stores.ledger.uri(candidate), source="s", run_id=run, description="", tags={}
        )
        self.registry.set_champion(self.project.name, number)
        return candidate

    def _artifact(self, key: str, name: str, data: bytes) -> Artifact:
        uri = self.stores.objects.put(layout.artifact(self.project.name, "candidate", key, name), data)
        return Artifact(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def a_project(old: str = "", new: str = "") -> Project:
    """The project of these tests, with a part of its file replaced."""
    assert old in TEXT
    return parse_project(TEXT.replace(old, new) if old else TEXT, Path("project.yaml"))


@cache
def good() -> bytes:
    """Weights that answer nearly all corners."""
    return to_bytes(train(Shard(samples(256, 5), samples(0)), recipe(), report=ignore))


@cache
def bad() -> bytes:
    """Weights that nobody trained."""
    return to_bytes(build(Architecture("small_cnn", 4, TASK.image), seed=0))


@cache
def weak_onnx() -> bytes:
    """An ONNX model that answers some corners."""
    made = samples(200, 5)
    return fit_model(made.images, made.targets, classes=4, features=6)
