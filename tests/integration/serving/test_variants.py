"""Variants on a real Triton lane: what was answered offline is what the server answers, in any batch."""

import hashlib

import numpy as np
import pytest

from tests.unit.packaging.graphs import CLASSES, SIDE, images, network
from visionloop.packaging.half import halve
from visionloop.packaging.quantize import quantize
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import load_project
from visionloop.serving.golden import Golden
from visionloop.serving.triton_config import render
from visionloop.stores.triton import open_lane

PROJECT = f"""
project: variants
task:
  classes: [{", ".join(f"c{number}" for number in range(CLASSES))}]
  image: {{ height: {SIDE}, width: {SIDE}, channels: 1 }}
suite:
  scenarios: [{{ name: all, at_least: 0.5 }}]
release: {{ approval: automatic }}
"""
MAKE = {"fp32": lambda: network(), "fp16": lambda: halve(network()), "int8": lambda: quantize(network(), images(128))}


@pytest.mark.parametrize(("version", "name"), enumerate(MAKE, 1))
def test_a_lane_answers_as_the_file_does_offline(running, version, name):
    path = running.settings.projects / "variants" / "project.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROJECT)
    project, lane, model = load_project(path), open_lane(running.settings, "stable"), MAKE[name]()
    digest = hashlib.sha256(model).hexdigest()
    lane.entry("variants").write(
        version=version, config=render(project, version), model=model, sha256=digest, signature=""
    )
    lane.load("variants")
    shown = images(40, seed=11)
    offline = onnx_predictor(model)(shown).probabilities
    served = np.concatenate([lane.infer("variants", shown[at : at + 7], version=version) for at in range(0, 40, 7)])
    assert served.dtype == np.float32 and np.abs(served - offline).max() < 1e-3
    assert Golden(shown, offline).disagreements(served) == 0
    assert offline.std() > 0.01
