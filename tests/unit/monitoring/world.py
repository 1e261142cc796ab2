"""A small real world for the monitor's tests: a folder store, a Lance dataset, an ONNX model, captures on disk."""

import hashlib
import json
import uuid
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.ndimage import gaussian_filter

from visionloop import layout
from visionloop.data.images import encode_png
from visionloop.project import Project, parse_project
from visionloop.records import Artifact, Candidate, Parity, Release, Snapshot
from visionloop.settings import Settings
from visionloop.stores import Stores, connect
from visionloop.stores.datasets import SCHEMA

CLASSES = ["box", "disc", "stripes", "cross"]
SIDE = 28
PROJECT = """\
project: p
task: {classes: [box, disc, stripes, cross], image: {height: 28, width: 28, channels: 1}}
suite: {scenarios: [{name: overall}]}
release: {approval: automatic}
monitoring: {window_samples: 400, min_views: 2, cooldown_minutes: 10}
"""
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
Pixels = NDArray[np.uint8]


def make_project(text: str = PROJECT) -> Project:
    """The project of these tests."""
    return parse_project(text, Path("project.yaml"))


def make_stores(folder: Path) -> Stores:
    """Stores over a folder."""
    return connect(Settings(home=folder, store=f"file://{folder}/store"))


def make_images(count: int, seed: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Textured shapes under uneven light with sensor noise: uint8 NHWC and class indices."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    images = np.empty((count, SIDE, SIDE, 1), np.uint8)
    for at, label in enumerate(labels):
        size, angle = rng.uniform(6, 12), rng.uniform(0, 2 * np.pi)
        texture = 30 * np.sin(rows * rng.uniform(1, 3) + angle) * np.sin(columns * rng.uniform(1, 3))
        masks = (
            (np.abs(rows) < size) & (np.abs(columns) < size),
            rows**2 + columns**2 < size**2,
            (np.floor((rows + 3 * at) / 3) % 2 == 0) & (np.abs(columns) < size),
            (np.abs(rows) < 3) | (np.abs(columns) < 3),
        )
        light = rng.uniform(150, 220) + 20 * np.cos(angle) * columns / SIDE
        picture = np.where(masks[label], light + texture, 12.0) + rng.normal(0, 3, (SIDE, SIDE))
        images[at, ..., 0] = np.clip(picture, 0, 255)
    return images, labels


def change_camera(images: Pixels, *, blur: float = 1.2, light: float = 0.5, seed: int = 0) -> Pixels:
    """Out of focus and dark."""
    noise = np.random.default_rng(seed).normal(0, 3, images.shape)
    blurred = gaussian_filter(images.astype(np.float32), (0, blur, blur, 0))
    return np.clip(blurred * light + noise, 0, 255).astype(np.uint8)


@cache
def make_model() -> bytes:
    """The model of the shapes."""
    return fit_model(*make_images(800, seed=99), classes=len(CLASSES), features=16)


def fit_model(images: Pixels, labels: NDArray[np.int64], *, classes: int, features: int) -> bytes:
    """ONNX: 28x28 uint8 -> random features (embedding) -> softmax of a least-squares read-out (probabilities)."""
    rng = np.random.default_rng(5)
    first = (rng.normal(size=(SIDE * SIDE, features)) / SIDE).astype(np.float32)
    hidden = np.maximum(images.reshape(len(images), -1) / np.float32(255) @ first, 0)
    second = np.linalg.lstsq(hidden, 8.0 * np.eye(classes)[labels], rcond=None)[0].astype(np.float32)
    constants = {"scale": np.float32(255), "flat": np.array([-1, SIDE * SIDE]), "first": first, "second": second}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "first"], ["linear"]),
        helper.make_node("Relu", ["linear"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "second"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIDE, SIDE, 1])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", features]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def add_snapshot(
    project: Project, stores: Stores, batch: str, images: Pixels, labels: NDArray[np.int64], *, at: datetime = BEGAN
) -> Snapshot:
    """Append a batch to the real dataset: 60 % train, 40 % test; and record the snapshot."""
    blobs = [encode_png(image) for image in images]
    names = project.task.classes
    count = len(blobs)
    columns = {
        "sample_id": [hashlib.sha256(blob).hexdigest() for blob in blobs],
        "label": [names[label] for label in labels],
        "group": [""] * count,
        "batch": [batch] * count,
        "split": ["train" if place % 5 < 3 else "test" for place in range(count)],
        "image": blobs,
        **{name: [value] * count for name, value in zip(("height", "width"), images.shape[1:3], strict=True)},
        "channels": [images.shape[3]] * count,
        "metadata": [json.dumps({"camera": batch})] * count,
        "added_at": [at] * count,
    }
    rows = pa.record_batch(columns, schema=SCHEMA)
    done = stores.datasets.append(project.name, lambda known: [rows], mark=batch, since=0)
    before = stores.ledger.latest(Snapshot, project.name)
    return stores.ledger.put(
        Snapshot(
            id=f"snapshot-{batch}",
            project=project.name,
            created_at=at,
            dataset_uri=stores.datasets.uri(project.name),
            version=done.version,
            tag=f"after-{batch}",
            batches=[*(before.batches if before else []), batch],
            samples=done.added + (before.samples if before else 0),
            added=done.added,
            splits={},
            classes={},
        )
    )


def add_release(
    project: Project, stores: Stores, version: int, snapshot: Snapshot, *, at: datetime = BEGAN, model: bytes = b""
) -> Release:
    """Package a model and promote it."""
    model = model or make_model()
    sha256 = hashlib.sha256(model).hexdigest()
    uri = stores.objects.put(layout.artifact(project.name, "candidate", f"candidate-{version}", "model.onnx"), model)
    image = project.task.image
    candidate = stores.ledger.put(
        Candidate(
            id=f"candidate-{version}",
            project=project.name,
            created_at=at,
            training_run=f"run-{version}",
            evaluation="e",
            gate_decision="g",
            snapshot=stores.ledger.uri(snapshot),
            model_name=project.name,
            version=version,
            model_sha256=sha256,
            artifacts={"model.onnx": Artifact(uri=uri, sha256=sha256, size_bytes=len(model))},
            classes=project.task.classes,
            image_shape=(image.height, image.width, image.channels),
            parity=Parity(samples=1, max_abs_difference=0.0, p99_abs_difference=0.0, disagreements=0),
        )
    )
    return stores.ledger.put(
        Release(
            id=f"release-{version}",
            project=project.name,
            created_at=at,
            candidate=stores.ledger.uri(candidate),
            approval="a",
            version=version,
            model_sha256=sha256,
            previous_version=version - 1 or None,
            steps=[],
            outcome="promoted",
            reason="test",
        )
    )


def add_captures(
    project: Project,
    stores: Stores,
    version: int,
    images: Pixels,
    probabilities: NDArray[np.float32],
    *,
    at: datetime = BEGAN,
    rows: int = 100,
    lane: str = "stable",
    without_image: int = 0,
) -> list[str]:
    """Write captures as the capture service does; the first `without_image` rows of each lack their image."""
    keys = []
    for start in range(0, len(images), rows):
        part, answers = images[start : start + rows], probabilities[start : start + rows]
        begins = at + timedelta(seconds=start)
        blobs = [image.tobytes() if place >= without_image else None for place, image in enumerate(part)]
        count = len(part)
        table = pa.table(
            {
                "request_id": [str(uuid.UUID(int=start + place)) for place in range(count)],
                "at": pa.array(
                    [begins + timedelta(milliseconds=place) for place in range(count)], pa.timestamp("us", "UTC")
                ),
                "model": [project.name] * count,
                "version": [version] * count,
                "lane": [lane] * count,
                "status": [200] * count,
                "latency_ms": [1.5] * count,
                "probabilities": pa.array(list(answers.astype(np.float32)), pa.list_(pa.float32())),
                "prediction": answers.argmax(1),
                "confidence": answers.max(1),
                "image": pa.array(blobs, pa.binary()),
                "height": pa.array([part.shape[1]] * count, pa.int32()),
                "width": pa.array([part.shape[2]] * count, pa.int32()),
                "channels": pa.array([part.shape[3]] * count, pa.int32()),
            }
        )
        buffer = BytesIO()
        pq.write_table(table, buffer)
        name = f"{int(begins.timestamp() * 1000)}-{uuid.UUID(int=start + 1)}-n{count}.parquet"
        key = f"{layout.captures(project.name)}version={version}/lane={lane}/hour={begins:%Y%m%d%H}/{name}"
        stores.objects.put(key, buffer.getvalue())
        keys.append(key)
    return keys
