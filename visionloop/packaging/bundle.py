"""A model for the edge as one file: ONNX, labels, what to do with an image, digests, known answers, and a runner.

The runner needs nothing but onnxruntime and numpy, and refuses to answer where a byte is not as it was packed. The
same candidate and standing give the same bytes: entries are stored, not compressed, and carry no time.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import onnx

from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.records import Candidate, Release
from visionloop.serving.golden import TIE

RUNNER = Path(__file__).parent / "bundled" / "run.py"
MODEL, GOLDEN, MANIFEST = "model.onnx", "golden.npz", "manifest.json"


class Standing(NamedTuple):
    """What became of a version's release."""

    outcome: Literal["promoted", "rolled_back", "rejected", "taken_back", "unreleased"]
    """Taken back: promoted, then somebody had an earlier version serve instead."""
    reason: str


def standing(candidate: str, releases: Iterable[Release]) -> Standing:
    """Of the candidate with this URI, from all releases of its project, oldest first."""
    found = Standing("unreleased", "no release of it has ended")
    version = 0
    for release in releases:
        if release.candidate == candidate:
            found, version = Standing(release.outcome, release.reason), release.version
        elif release.outcome == "promoted" and release.version < version == release.previous_version:
            found = Standing("taken_back", release.reason)
    return found


def pack(candidate: Candidate, *, model: bytes, golden: bytes, outcome: str) -> bytes:
    """The archive; the caller has verified both files. All lies in one folder, `<project>-<version>/`."""
    files = {
        MODEL: model,
        GOLDEN: golden,
        "labels.json": _json(candidate.classes),
        "preprocessing.json": _json(preprocessing(candidate)),
        "about.json": _json(about(candidate, model, outcome)),
        "run.py": RUNNER.read_bytes(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    files[MANIFEST] = _json(digests)
    return _zipped(folder(candidate), files)


def folder(candidate: Candidate) -> str:
    """Name of the folder inside."""
    return f"{candidate.project}-{candidate.version}"


def preprocessing(candidate: Candidate) -> dict[str, object]:
    """What the caller has to do with an image, and what the graph does itself."""
    channels = candidate.image_shape[2]
    return {
        "input": INPUT,
        "output": PROBABILITIES,
        "type": "uint8",
        "layout": "NHWC",
        "shape": list(candidate.image_shape),
        "colour": "grey (ITU-R 601 luma)" if channels == 1 else "RGB",
        "range": [0, 255],
        "resize": "bilinear with antialiasing, as Pillow's BILINEAR; to the shape, aspect ratio not kept",
        "orientation": "upright: EXIF's orientation is applied first",
        "normalisation": "none: scaling and normalisation are part of the graph",
        "tie": TIE,
    }


def about(candidate: Candidate, model: bytes, outcome: str) -> dict[str, object]:
    """Where the model comes from, and what became of its release."""
    proto = onnx.load_from_string(model)
    return {
        "project": candidate.project,
        "version": candidate.version,
        "variant": candidate.variant,
        "release": outcome,
        "candidate": candidate.id,
        "model_sha256": candidate.model_sha256,
        "packaged_at": candidate.created_at.isoformat(),
        "code_revision": candidate.code_revision,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "ir_version": proto.ir_version,
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _zipped(root: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{root}/{name}")  # its time is 1980-01-01
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()
