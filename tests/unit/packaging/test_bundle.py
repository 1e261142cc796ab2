"""The edge bundle: it runs with nothing but onnxruntime and numpy, and no changed byte goes unnoticed."""

import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.unit.packaging.graphs import CLASSES, SIDE, images, network
from visionloop.packaging import golden
from visionloop.packaging.bundle import pack, standing
from visionloop.packaging.runtime import onnx_predictor
from visionloop.records import Artifact, Candidate, Parity, Release

LABELS = ["screw", "nut", "bolt", "washer"]
FILES = {
    *("about.json", "golden.npz", "labels.json", "manifest.json", "model.onnx", "preprocessing.json", "run.py"),
}


def candidate(model: bytes) -> Candidate:
    sha256 = hashlib.sha256(model).hexdigest()
    return Candidate(
        id="c1", project="screws", training_run="t", evaluation="e", gate_decision="g", snapshot="s",
        model_name="screws", version=3, model_sha256=sha256, classes=LABELS, image_shape=(SIDE, SIDE, 1),
        created_at="2026-01-02T03:04:05Z", code_revision="abc",
        artifacts={"model.onnx": Artifact(uri="m", sha256=sha256, size_bytes=len(model))},
        parity=Parity(samples=1, max_abs_difference=0, p99_abs_difference=0, disagreements=0),
    )  # fmt: skip


@cache
def packed(*, other_answers: bool = False) -> bytes:
    model, shown = network(), images(16)
    said = onnx_predictor(model)(shown).probabilities
    said = said[:, ::-1].copy() if other_answers else said
    answers = golden.pack(shown, said, np.arange(16) % CLASSES)
    return pack(candidate(model), model=model, golden=answers, outcome="promoted")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(packed())) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "screws-3"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str) -> str:
    """What the runner prints or refuses with, in this process: starting one takes a second."""
    monkeypatch.setattr(sys, "argv", ["run.py", argument])
    try:
        runpy.run_path(str(folder / "run.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            return str(end.code)
    return capsys.readouterr().out


def test_a_python_with_onnxruntime_and_numpy_alone_runs_it(folder: Path, tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    lean.mkdir()
    for name in ("numpy", "onnxruntime"):
        place = Path(str(find_spec(name).origin)).parent
        for found in {place, place.with_name(f"{name}.libs")}:
            if found.exists():
                (lean / found.name).symlink_to(found)
    np.save(tmp_path / "images.npy", images(3, seed=9))
    env = {"PYTHONPATH": str(lean), "PATH": os.environ["PATH"]}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert python("-c", "import onnx").returncode != 0
    checked = python(str(folder / "run.py"), "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "right: the files are as packed, and 16 known answers come out\n"
    answered = python(str(folder / "run.py"), "images.npy")
    said = onnx_predictor(network())(images(3, seed=9)).probabilities
    assert answered.stdout.split("\n")[:-1] == [f"{LABELS[row.argmax()]} {row.max():.4f}" for row in said]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_byte_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(folder, monkeypatch, capsys, "--check").startswith("right")
    path = folder / name
    data = bytearray(path.read_bytes())
    at = data.index(b"Answers") if name == "run.py" else len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)
    assert run(folder, monkeypatch, capsys, "--check").startswith("refused: a file is not the one")
    np.save(folder / "image.npy", images(1)[0])
    assert run(folder, monkeypatch, capsys, str(folder / "image.npy")).startswith("refused")


def test_a_machine_that_answers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zipfile.ZipFile(io.BytesIO(packed(other_answers=True))).extractall(tmp_path)
    said = run(tmp_path / "screws-3", monkeypatch, capsys, "--check")
    assert said == "refused: 16 of 16 known answers are others on this machine"


@pytest.mark.parametrize(
    ("image", "fine"),
    [
        (np.zeros((SIDE, SIDE, 1), np.uint8), True),
        (np.zeros((2, SIDE, SIDE, 1), np.uint8), True),
        (np.zeros((SIDE, SIDE, 3), np.uint8), False),
        (np.zeros((SIDE, SIDE, 1), np.float32), False),
        (np.zeros((SIDE, SIDE + 1, 1), np.uint8), False),
    ],
)
def test_only_images_of_the_models_shape_are_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], image: np.ndarray, fine: bool
) -> None:
    np.save(folder / "image.npy", image)
    said = run(folder, monkeypatch, capsys, str(folder / "image.npy"))
    if fine:
        assert len(said.splitlines()) == (len(image) if image.ndim == 4 else 1)
    else:
        assert said.startswith("refused: expected uint8 [12, 12, 1], found")


def test_what_is_inside(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "model.onnx").read_bytes() == network()
    assert json.loads((folder / "labels.json").read_text()) == LABELS
    facts = json.loads((folder / "preprocessing.json").read_text())
    assert (facts["shape"], facts["type"], facts["layout"]) == ([12, 12, 1], "uint8", "NHWC")
    about = json.loads((folder / "about.json").read_text())
    assert (about["project"], about["version"], about["variant"]) == ("screws", 3, "fp32")
    assert about["release"] == "promoted"
    assert (about["opset"], about["ir_version"]) == ({"ai.onnx": 18}, 10)
    digests = json.loads((folder / "manifest.json").read_text())
    assert set(digests) == FILES - {"manifest.json"}
    assert digests["model.onnx"] == about["model_sha256"] == hashlib.sha256(network()).hexdigest()
    assert len((folder / "run.py").read_text().splitlines()) <= 30


def test_the_same_candidate_gives_the_same_bytes() -> None:
    data = packed()
    packed.cache_clear()
    assert packed() == data
    entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def release(version: int, previous: int | None, outcome: str = "promoted") -> Release:
    return Release.model_validate(
        {"id": f"r{version}", "project": "p", "candidate": f"c{version}", "approval": "a", "version": version}
        | {"model_sha256": "00", "previous_version": previous, "steps": [], "outcome": outcome}
        | {"reason": f"{version} instead of {previous}"}
    )


@pytest.mark.parametrize(
    ("releases", "expected"),
    [
        ([], ("unreleased", "no release of it has ended")),
        ([release(1, None), release(3, 1)], ("unreleased", "no release of it has ended")),
        ([release(1, None), release(2, 1)], ("promoted", "2 instead of 1")),
        ([release(1, None), release(2, 1, "rolled_back")], ("rolled_back", "2 instead of 1")),
        ([release(1, None), release(2, 1, "rejected"), release(3, 1)], ("rejected", "2 instead of 1")),
        ([release(1, None), release(2, 1), release(3, 2)], ("promoted", "2 instead of 1")),
        ([release(1, None), release(2, 1), release(1, 2)], ("taken_back", "1 instead of 2")),
        ([release(1, None), release(2, 1), release(3, 2), release(1, 3)], ("promoted", "2 instead of 1")),
        ([release(1, None), release(2, 1), release(1, 2), release(2, 1)], ("promoted", "2 instead of 1")),
    ],
    ids=["none", "of others", "promoted", "rolled back", "rejected", "followed", "taken back", "older", "back again"],
)
def test_what_became_of_version_2(releases: list[Release], expected: tuple[str, str]) -> None:
    assert standing("c2", releases) == expected
