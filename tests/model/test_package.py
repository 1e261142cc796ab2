"""Package: ONNX equal to the trained model, everything a server needs, and one version however often it runs."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2

from tests.unit.stages.corners import World, a_project, bad, good, weak_onnx
from tests.unit.training.shapes import CLASSES
from visionloop.data.images import decode_batch
from visionloop.errors import IntegrityError, StageError, StoreError
from visionloop.packaging import onnx as packaging_onnx
from visionloop.packaging import trials
from visionloop.packaging.quantize import quantize
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import Project
from visionloop.records import Candidate, Evaluation, GateDecision, Snapshot
from visionloop.serving.golden import read_golden
from visionloop.serving.triton_config import GOLDEN_SHA256
from visionloop.stages import package
from visionloop.stores import Stores
from visionloop.stores.packaged import read_packaged
from visionloop.tasks import open_task
from visionloop.training.model import from_bytes, to_bytes
from visionloop.training.predict import torch_predictor

IMAGES, TESTED = 200, 80


@cache
def exported(weights: bytes) -> bytes:
    """The real export, once for each model: it takes a second."""
    model = from_bytes(weights)
    return packaging_onnx.export(model, open_task(a_project().task))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(package, "export", lambda model, task: exported(to_bytes(model)))
    yield World(tmp_path, images=IMAGES)


def gated(world: World, outcome: str = "passed") -> str:
    """URI of a gate decision about a trained model."""
    snapshot = world.snapshot()
    evaluation = Evaluation(
        id="e1",
        project="corners",
        snapshot=world.stores.ledger.uri(snapshot),
        training_run=world.training_run(snapshot),
        champion=None,
        test_samples=TESTED,
        scenarios=[],
        page_uri="p",
    )
    uri = world.stores.ledger.uri(world.stores.ledger.put(evaluation))
    record = GateDecision.model_validate(
        {
            "id": f"g-{outcome}",
            "project": "corners",
            "inputs": {"evaluation": uri},
            "evaluation": uri,
            "outcome": outcome,
            "reasons": ["all bars hold"] if outcome == "passed" else ["critical scenario overall failed"],
        }
    )
    return world.stores.ledger.uri(world.stores.ledger.put(record))


def packaged(world: World, decision: str, project: Project | None = None, stores: Stores | None = None) -> Candidate:
    inputs = package.Inputs(gate_decision=decision)
    return package.run(project or world.project, inputs, stores or world.connect())


def artifact(world: World, candidate: Candidate, name: str) -> bytes:
    found = candidate.artifacts[name]
    data = world.stores.objects.get(world.stores.objects.key(found.uri))
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (found.sha256, found.size_bytes)
    return data


def test_a_candidate_has_all_that_serving_needs(world: World) -> None:
    decision = gated(world)
    found = packaged(world, decision)
    model = artifact(world, found, "model.onnx")
    assert hashlib.sha256(model).hexdigest() == found.model_sha256

    golden = read_golden(artifact(world, found, "golden.npz"))
    assert len(golden.images) == 64 and golden.probabilities.shape == (64, 4)
    task = open_task(world.project.task)
    trained = torch_predictor(from_bytes(good()), task)(golden.images).probabilities
    assert np.allclose(golden.probabilities, trained, atol=1e-5)
    assert np.array_equal(onnx_predictor(model)(golden.images).probabilities.argmax(1), trained.argmax(1))
    assert len(set(trained.argmax(1))) == 4

    config = text_format.Parse(artifact(world, found, "config.pbtxt").decode(), model_config_pb2.ModelConfig())
    assert (config.name, list(config.version_policy.specific.versions)) == ("corners", [found.version])
    assert config.parameters[GOLDEN_SHA256].string_value == found.artifacts["golden.npz"].sha256
    assert read_packaged(found, world.stores, "golden.npz")["model.onnx"] == model
    assert (found.classes, found.image_shape) == (world.project.task.classes, (28, 28, 1))
    assert found.parity.samples == TESTED and found.parity.disagreements == 0
    assert 0 < found.parity.max_abs_difference < 1e-4
    assert set(found.inputs) == set(found.input_digests) == {"gate_decision", "evaluation", "training_run", "snapshot"}
    assert found.inputs["gate_decision"] == found.gate_decision == decision


def test_it_is_registered_with_its_lineage_as_the_challenger(world: World) -> None:
    found = packaged(world, gated(world))
    (version,) = world.registry.registered
    assert world.registry.challenger("corners") == version and world.registry.champion("corners") is None
    assert (version.version, version.candidate) == (1, world.stores.ledger.uri(found))
    assert version.tags["visionloop.model_sha256"] == found.model_sha256
    assert version.tags["visionloop.training_run"] == "t1"
    assert world.registry.descriptions == ["all bars hold"]
    assert found.artifacts["model.onnx"].uri.startswith(world.registry.sources[0] + "/")


def test_packaged_twice_is_one_candidate_and_one_version(world: World) -> None:
    decision = gated(world)
    assert packaged(world, decision) == packaged(world, decision)
    assert len(world.registry.registered) == 1
    assert len(world.stores.ledger.all(Candidate, "corners")) == 1


def test_other_serving_options_are_another_candidate(world: World) -> None:
    decision = gated(world)
    first = packaged(world, decision)
    second = packaged(world, decision, a_project("release:", "serving: {threads: 2}\nrelease:"))
    assert (first.version, second.version) == (1, 2) and first.id != second.id
    assert first.model_sha256 == second.model_sha256
    assert b'string_value: "2"' in artifact(world, second, "config.pbtxt")


@pytest.mark.parametrize(
    ("store", "method", "nth", "after"),
    [
        ("objects", "put", 1, False),
        ("registry", "register", 1, False),
        ("registry", "register", 1, True),
        ("objects", "put", 3, True),
        ("registry", "set_challenger", 1, True),
        ("ledger", "put", 1, False),
        ("ledger", "put", 1, True),
    ],
)
def test_killed_anywhere_and_run_again_is_one_version(
    world: World, monkeypatch: pytest.MonkeyPatch, store: str, method: str, nth: int, after: bool
) -> None:
    decision, stores = gated(world), world.connect()
    real, calls = getattr(getattr(stores, store), method), []

    def killed(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) < nth:
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(getattr(stores, store), method, killed)
        with pytest.raises(KeyboardInterrupt):
            packaged(world, decision, stores=stores)
    found = packaged(world, decision)
    assert [version.candidate for version in world.registry.registered] == [world.stores.ledger.uri(found)]
    assert world.stores.ledger.all(Candidate, "corners") == [found]
    assert found.version == 1 and world.registry.aliases == {"challenger": 1}
    for name in found.artifacts:
        artifact(world, found, name)


def test_the_version_names_the_model_that_was_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the registration, and packaged again by a processor that rounds otherwise."""
    decision, stores = gated(world), world.connect()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.registry, "set_challenger", killed)
        with pytest.raises(KeyboardInterrupt):
            packaged(world, decision, stores=stores)
    monkeypatch.setattr(package, "export", lambda model, task: nudged(exported(to_bytes(model)), 1e-7))
    found = packaged(world, decision)
    assert world.registry.registered[0].tags["visionloop.model_sha256"] == found.model_sha256


def nudged(model: bytes, by: float) -> bytes:
    """The model with its head's bias moved."""
    proto = onnx.load_from_string(model)
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith("head.bias"))
    values = numpy_helper.to_array(bias) + np.array([by, 0, 0, 0], np.float32)
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    return bytes(proto.SerializeToString())


def test_a_model_that_says_something_else_is_never_registered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = gated(world)
    monkeypatch.setattr(package, "export", lambda model, task: nudged(exported(to_bytes(model)), 20.0))
    with pytest.raises(StageError, match="the ONNX model is not the trained one"):
        packaged(world, decision)
    assert world.registry.registered == [] and world.stores.ledger.all(Candidate, "corners") == []


def test_what_the_gate_rejected_is_not_packaged(world: World) -> None:
    with pytest.raises(StageError, match="is rejected: critical scenario overall failed"):
        packaged(world, gated(world, "rejected"))
    assert world.registry.registered == []


def test_weights_that_are_not_the_runs_are_refused(world: World) -> None:
    decision = gated(world)
    world.stores.objects.put("corners/checkpoints/t1/epoch-000002/weights.safetensors", bad())
    with pytest.raises(IntegrityError, match="it was changed"):
        packaged(world, decision)


def test_mlflow_away_registers_nothing_and_later_all(world: World) -> None:
    decision = gated(world)
    world.registry.down = True
    with pytest.raises(StoreError, match="MLflow at memory cannot be reached"):
        packaged(world, decision)
    assert world.registry.registered == [] and world.stores.ledger.all(Candidate, "corners") == []
    world.registry.down = False
    assert packaged(world, decision).version == 1


# --- variants


EVERY = "variants: [fp32, fp16, int8]"


def test_each_variant_is_tried_and_the_best_is_served(world: World) -> None:
    """INT8 or FP32, as the measurement on this machine has it; what is recorded fits what is served."""
    decision = gated(world)
    found = packaged(world, decision, a_project("variants: [fp32]", EVERY))
    assert [variant.name for variant in found.variants] == ["fp32", "fp16", "int8"]
    fp32, fp16, int8 = found.variants
    assert found.parity == fp32.parity and fp32.changes == []
    assert fp16.reason == "it is made for a GPU, the lanes compute on a CPU (packaging.device)"
    assert 0 < fp32.parity.max_abs_difference < fp16.parity.max_abs_difference < int8.parity.max_abs_difference
    assert fp32.size_bytes > 1.5 * fp16.size_bytes > 2 * int8.size_bytes

    (served,) = (variant for variant in found.variants if variant.chosen)
    model = artifact(world, found, "model.onnx")
    assert (found.variant, found.model_sha256, len(model)) == (served.name, served.sha256, served.size_bytes)
    assert world.registry.registered[0].tags["visionloop.variant"] == served.name
    golden = read_golden(artifact(world, found, "golden.npz"))
    assert np.allclose(golden.probabilities, onnx_predictor(model)(golden.images).probabilities, atol=1e-6)

    assert [part.name for part in found.parity.slices] == ["camera=one", *(f"label={name}" for name in sorted(CLASSES))]
    assert sum(part.samples for part in found.parity.slices[1:]) == found.parity.slices[0].samples == TESTED
    assert [(change.scenario, change.judged) for change in int8.changes] == [
        *(("overall", True), ("camera-one", True), ("noise", False)),
    ]
    assert int8.changes[0].difference.n == TESTED and int8.gate == "passed"


def test_a_variant_that_is_cheaper_and_loses_too_much_is_not_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "measure", lambda models, images, device: {"fp32": 1.0, "int8": 0.3})
    monkeypatch.setattr(trials, "quantize", lambda model, images: nudged(model, 20.0))
    found = packaged(world, gated(world), a_project("variants: [fp32]", "variants: [int8], max_loss: 1.0"))
    assert found.variant == "fp32" and found.variants[1].gate == "rejected"
    assert "critical scenario overall failed" in found.variants[1].reason
    low = a_project("at_least: 0.8", "at_least: 0.1")
    low = low.model_copy(update={"packaging": low.packaging.model_copy(update={"variants": ["int8"]})})
    found = packaged(world, gated(world), low)
    assert found.variant == "fp32" and found.variants[1].gate == "passed"
    assert re.match(r"it loses \d\d\.\d\d points in overall, 0\.50 may be lost", found.variants[1].reason)


def test_a_cheaper_variant_that_loses_little_is_served_and_its_answers_are_the_golden_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "measure", lambda models, images, device: {"fp32": 1.0, "int8": 0.3})
    found = packaged(world, gated(world), a_project("variants: [fp32]", "variants: [int8], max_loss: 0.1"))
    assert found.variant == "int8" and found.model_sha256 == found.variants[1].sha256
    assert found.variants[1].reason.startswith("it costs 30 % of fp32 and loses at most ")
    golden = read_golden(artifact(world, found, "golden.npz"))
    model = artifact(world, found, "model.onnx")
    assert np.allclose(golden.probabilities, onnx_predictor(model)(golden.images).probabilities, atol=1e-7)
    exact = onnx_predictor(exported(good()))(golden.images).probabilities
    assert not np.allclose(golden.probabilities, exact, atol=1e-7)
    assert found.parity.max_abs_difference < 1e-4  # the proof is about the export


def test_the_calibration_is_drawn_from_the_training_split_and_can_be_drawn_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(trials, "quantize", lambda model, images: shown.append(images) or quantize(model, images))
    decision = gated(world)
    project = a_project("variants: [fp32]", "variants: [int8], calibration_samples: 40")
    found = packaged(world, decision, project)
    assert found.calibration is not None and (found.calibration.samples, found.calibration.seed) == (40, 3)
    snapshot = world.stores.ledger.get(Snapshot, found.snapshot)
    train = world.stores.datasets.read(snapshot, split="train", columns=["sample_id", "image"])
    by_image = {
        decode_batch([blob], project.task.image).tobytes(): name
        for name, blob in zip(train["sample_id"].to_pylist(), train["image"].to_pylist(), strict=True)
    }
    ids = sorted(by_image[image.tobytes()] for image in shown[0])
    listed = "".join(f"{name}\n" for name in ids)
    assert len(set(ids)) == 40 and found.calibration.sample_ids_sha256 == hashlib.sha256(listed.encode()).hexdigest()
    again = packaged(world, decision, a_project("variants: [fp32]", "variants: [int8], calibration_samples: 41"))
    assert again.calibration is not None and again.calibration.samples == 41 and again.id != found.id
    assert np.array_equal(shown[0], images_of(world, project, found, 40))


def images_of(world: World, project: Project, candidate: Candidate, count: int) -> np.ndarray:
    lineage = package._lineage(package.Inputs(gate_decision=candidate.gate_decision), world.stores)
    return package._calibration(project, lineage, world.connect())[0]


def test_variants_face_the_champion_of_the_evaluation(world: World) -> None:
    """It serves no more when the model is packaged, and what the gate compared with still counts."""
    world.snapshot("zero", seed=8)
    training_run = world.training_run(world.snapshot())
    champion = world.champion(exported(good()))  # as good as the challenger: nothing improves
    evaluation = world.stores.ledger.uri(world.evaluation(training_run))
    world.champion(weak_onnx())
    values = {
        "id": "g",
        "project": "corners",
        "evaluation": evaluation,
        "outcome": "passed",
        "reasons": ["let through"],
    }
    decision = world.stores.ledger.uri(world.stores.ledger.put(GateDecision.model_validate(values)))
    with pytest.raises(StageError, match=r"no variant may be served: fp32: the gate rejects it: no critical or major"):
        packaged(world, decision)
    assert world.registry.challenger("corners") is None
    found = packaged(world, decision, a_project("release:", "gate: {must_improve: false}\nrelease:"))
    assert found.variant == "fp32" and champion.version == 1


def test_the_page_has_the_table_of_variants(world: World) -> None:
    found = packaged(world, gated(world), a_project("variants: [fp32]", EVERY))
    assert found.page_uri is not None and found.page_uri.endswith(f"artifacts/candidate/{found.id}/candidate.html")
    page = world.stores.objects.get(world.stores.objects.key(found.page_uri)).decode()
    assert page.startswith("<!doctype html>") and "http" not in page.replace("http-equiv", "")
    for words in ("FP32", "FP16", "INT8", found.model_sha256, "camera=one", "label=top-left", *REASONS):
        assert words in page, words
    alone = packaged(world, gated(world))
    page = world.stores.objects.get(world.stores.objects.key(alone.page_uri or "")).decode()
    assert "FP32 is what would be served." in page and "INT8" not in page


REASONS = ("it is made for a GPU, the lanes compute on a CPU (packaging.device)", "A variant may lose 0.50 points")
