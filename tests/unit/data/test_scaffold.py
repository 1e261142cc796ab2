"""`project init`: a file that the project parser accepts, with the classes and sizes that the data have."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionloop.data.scaffold import scaffold
from visionloop.errors import ConfigError, DataError
from visionloop.project import Project, parse_project


def begun(folder: Path) -> Project:
    return parse_project(scaffold("p", task="classification", folder=folder, approvers=["lea"]), Path("project.yaml"))


def test_class_folders(tmp_path: Path) -> None:
    for name, size in {"yes": (100, 80), "a: b": (100, 80), "no": (1000, 80)}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / name / "1.png")
    (tmp_path / "no" / "broken.png").write_bytes(b"no image")
    project = begun(tmp_path)
    assert project.task.classes == ["a: b", "no", "yes"]
    assert project.task.image.model_dump() == {"height": 80, "width": 100, "channels": 3}
    assert project.training.backbone == "tf_efficientnet_lite0"
    assert project.data.contract.max_side >= 1000


def test_idx_files(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8)
    images = np.zeros((12, 28, 28), np.uint8)
    (tmp_path / "x-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 12, 28, 28) + images.tobytes())
    packed = gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 12) + labels.tobytes())
    (tmp_path / "x-labels-idx1-ubyte.gz").write_bytes(packed)
    project = begun(tmp_path)
    assert project.task.classes == [f"class-{number}" for number in range(12)]
    assert project.training.backbone == "small_cnn"


def test_what_cannot_become_a_project(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        begun(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        begun(tmp_path / "none")
    with pytest.raises(ConfigError, match="expected classification"):
        scaffold("p", task="detection", folder=tmp_path, approvers=["lea"])
    (tmp_path / "only").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "only" / "1.png")
    with pytest.raises(DataError, match="expected at least two"):
        begun(tmp_path)
    (tmp_path / "only" / "1.png").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="no image that can be decoded"):
        begun(tmp_path)
