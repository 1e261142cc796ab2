"""Batches to deliver in tests: small images of known content, as files in a store on this machine."""

import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from visionloop import layout
from visionloop.data.images import Pixels, encode_png
from visionloop.project import Project, parse_project
from visionloop.records import Ingest, Snapshot, Validation
from visionloop.settings import Settings
from visionloop.stages import ingest, snapshot, validate
from visionloop.stores import Stores, connect

PROJECT = """\
project: p
task: {classes: [a, b], image: {height: 8, width: 8, channels: 1}}
data:
  splits: {group_by: null}
  contract: {min_samples: 2, min_side: 8, max_side: 32, brightness: [1.0, 254.0], max_quarantine_share: 0.5}
suite: {scenarios: [{name: overall}]}
release: {approval: automatic}
"""


def project(old: str = "", new: str = "") -> Project:
    """The project of these tests, with one piece of its text replaced."""
    assert old in PROJECT
    return parse_project(PROJECT.replace(old, new) if old else PROJECT, Path("project.yaml"))


def stores(folder: Path) -> Stores:
    """Stores in a folder."""
    return connect(Settings(home=folder / "home", store=f"file://{folder}/store"))


def pixels(seed: int, side: int = 8) -> Pixels:
    """A grey image HW that differs from those of other seeds."""
    return np.random.default_rng(seed).integers(50, 200, (side, side), np.uint8)


def png(seed: int, side: int = 8) -> bytes:
    """The same as a file."""
    return encode_png(pixels(seed, side))


def jpeg(seed: int, side: int = 32) -> bytes:
    """A JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def idx(array: Pixels) -> bytes:
    """A uint8 array as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def idx_batch(count: int, first: int = 0, labels: list[int] | None = None) -> dict[str, bytes]:
    """A pair of IDX files with `count` images; labels 0, 1, 0, 1 ..."""
    images = np.stack([pixels(seed) for seed in range(first, first + count)])
    given = np.array(labels if labels is not None else [number % 2 for number in range(count)], np.uint8)
    return {"images-idx3-ubyte.gz": gzip.compress(idx(images)), "labels-idx1-ubyte": idx(given)}


def folder_batch(count: int, first: int = 0) -> dict[str, bytes]:
    """Class folders with `count` PNG files."""
    return {f"{'ab'[seed % 2]}/{seed:03d}.png": png(seed) for seed in range(first, first + count)}


def deliver(files: dict[str, bytes], to: Stores, batch: str = "one", *, complete: bool = True) -> None:
    """Put a batch where it is expected."""
    for name, data in files.items():
        to.objects.put(layout.incoming("p", batch) + name, data)
    if complete:
        to.objects.put(layout.ready("p", batch), b"")


def ingested(project: Project, stores: Stores, batch: str = "one") -> Ingest:
    """Run the first stage."""
    return ingest.run(project, ingest.Inputs(batch=batch), stores)


def validated(project: Project, stores: Stores, batch: str = "one") -> Validation:
    """Run the first two stages."""
    return validate.run(project, validate.Inputs(ingest=stores.ledger.uri(ingested(project, stores, batch))), stores)


def snapshotted(project: Project, stores: Stores, batch: str = "one") -> Snapshot:
    """Run the three stages."""
    uri = stores.ledger.uri(validated(project, stores, batch))
    return snapshot.run(project, snapshot.Inputs(validation=uri), stores)


def sample_id(data: bytes) -> str:
    """What names a sample."""
    return hashlib.sha256(data).hexdigest()
