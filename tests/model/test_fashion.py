"""A real model of real garments: it learns, is exported unchanged, and behaves as one expects of it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.integration.conftest import REPO
from visionloop.demo import fashion
from visionloop.evaluation.corruptions import corrupt
from visionloop.packaging import parity
from visionloop.packaging.half import halve
from visionloop.packaging.onnx import export
from visionloop.packaging.quantize import quantize
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import ImageShape, Project, load_project
from visionloop.tasks import open_task
from visionloop.tasks.classification import Classification
from visionloop.tasks.task import VisionTask
from visionloop.training.loop import EpochEnd, Recipe, Shard, train
from visionloop.training.model import Architecture, VisionModel, build
from visionloop.training.predict import Predictor, torch_predictor
from visionloop.training.samples import Samples

TRAINED, VALIDATED, TESTED = 8_000, 1_000, 2_000
FLOOR = 0.83
"""Two epochs of 8,000 images give 0.87; the full training of the demo gives 0.90 and more."""
LEAST_LOSS = {"gaussian_noise": 0.2, "low_light": 0.15, "defocus": 0.015}
"""Of accuracy at severity 5 (they cost 0.41, 0.33 and 0.03)."""

Accuracy = Callable[[NDArray[np.uint8]], float]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def project() -> Project:
    return load_project(REPO / "projects" / "fashion" / "project.yaml")


@pytest.fixture(scope="module")
def task(project: Project) -> VisionTask:
    return open_task(project.task)


@pytest.fixture(scope="module")
def ends(project: Project) -> list[EpochEnd]:
    return []


@pytest.fixture(scope="module")
def model(project: Project, ends: list[EpochEnd]) -> VisionModel:
    how = project.training.model_copy(update={"epochs": 2})
    shard = Shard(some("train", 0, TRAINED), some("train", TRAINED, TRAINED + VALIDATED))
    return train(shard, Recipe(project.task, how, project.training.seed), report=ends.append)


@pytest.fixture(scope="module")
def packaged(model: VisionModel, task: VisionTask) -> bytes:
    return export(model, task)


@pytest.fixture(scope="module")
def tested() -> Samples:
    return some("test", 0, TESTED)


@pytest.fixture(scope="module")
def answer(model: VisionModel, task: VisionTask) -> Predictor:
    return torch_predictor(model, task)


@pytest.fixture(scope="module")
def accuracy(answer: Predictor, tested: Samples) -> Accuracy:
    return lambda images: float((answer(images).probabilities.argmax(1) == tested.targets).mean())


def some(split: fashion.Split, start: int, stop: int) -> Samples:
    images, labels = fashion.clean(split, start, stop)
    return Samples(images[..., None].copy(), labels.astype(np.int64))


def test_it_learns(accuracy: Accuracy, tested: Samples, ends: list[EpochEnd]) -> None:
    assert accuracy(tested.images) > FLOOR
    first, second = (entry.values for entry in ends[-1].state.history)
    assert second["train_loss"] < first["train_loss"]
    assert second["validation_accuracy"] == pytest.approx(accuracy(tested.images), abs=0.05)


def test_every_class_is_learned(answer: Predictor, tested: Samples) -> None:
    """Even shirts, which look like t-shirts, pullovers and coats at once."""
    answers = answer(tested.images).probabilities.argmax(1)
    recalls = [(answers[tested.targets == number] == number).mean() for number in range(10)]
    assert min(recalls) > 0.25 and sorted(recalls)[5] > 0.8


def test_the_packaged_model_is_the_trained_one(packaged: bytes, answer: Predictor, tested: Samples) -> None:
    theirs, mine = onnx_predictor(packaged)(tested.images), answer(tested.images)
    shown = parity.require(parity.compare(mine.probabilities, theirs.probabilities))
    assert shown.disagreements == 0 and shown.max_abs_difference < 1e-4
    assert np.allclose(theirs.embeddings, mine.embeddings, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 63, 64])
def test_an_image_is_answered_alike_in_any_batch(packaged: bytes, tested: Samples, count: int) -> None:
    predict = onnx_predictor(packaged)
    whole = predict(tested.images[:64]).probabilities[:count]
    assert np.allclose(predict(tested.images[:count]).probabilities, whole, atol=1e-5)


@pytest.mark.parametrize(("name", "most", "other"), [("int8", 0.005, 0.02), ("fp16", 0.001, 0.002)])
@pytest.mark.parametrize("severity", [0, 2])
def test_a_variant_loses_little(
    packaged: bytes, tested: Samples, name: str, most: float, other: float, severity: int
) -> None:
    """Clean and out of focus (it loses 0.05 points of accuracy in INT8, and takes 0.4 % of the decisions otherwise)."""
    variant = halve(packaged) if name == "fp16" else quantize(packaged, some("train", 0, 512).images)
    images = corrupt(tested.images, "defocus" if severity else "none", severity, seed=1)
    exact, rough = (onnx_predictor(data)(images).probabilities.argmax(1) for data in (packaged, variant))
    lost = (exact == tested.targets).mean() - (rough == tested.targets).mean()
    assert lost <= most and (exact != rough).mean() < other
    assert len(variant) < 0.6 * len(packaged)


@pytest.mark.parametrize("kind", sorted(LEAST_LOSS))
def test_corruption_costs_accuracy(accuracy: Accuracy, tested: Samples, kind: str) -> None:
    clean = accuracy(tested.images)
    weak, strong = (accuracy(corrupt(tested.images, kind, severity, seed=1)) for severity in (2, 5))
    assert strong < clean - LEAST_LOSS[kind] and strong < weak < clean + 0.01


def test_the_changed_camera_costs_accuracy(accuracy: Accuracy, tested: Samples) -> None:
    """The demo's story: without it nothing would have to be retrained."""
    changed = fashion.through_changed_camera(tested.images[..., 0], seed=3)[..., None]
    assert accuracy(changed) < accuracy(tested.images) - 0.08


def test_a_mirrored_garment_is_the_same_garment(answer: Predictor, tested: Samples) -> None:
    """The project trains with flips."""
    straight, mirrored = (
        answer(images).probabilities.argmax(1) for images in (tested.images, tested.images[:, :, ::-1])
    )
    assert (straight == mirrored).mean() > 0.88


def test_a_little_more_light_changes_little(answer: Predictor, tested: Samples) -> None:
    brighter = np.minimum(tested.images.astype(np.uint16) * 11 // 10, 255).astype(np.uint8)
    same = answer(brighter).probabilities.argmax(1) == answer(tested.images).probabilities.argmax(1)
    assert same.mean() > 0.93


def test_being_sure_means_being_right(answer: Predictor, tested: Samples) -> None:
    probabilities = answer(tested.images).probabilities
    sure = probabilities.max(1) > 0.9
    right = probabilities.argmax(1) == tested.targets
    assert right[sure].mean() > right[~sure].mean() + 0.15


def test_a_timm_backbone_is_packaged_too() -> None:
    architecture = Architecture("test_convnext", 5, ImageShape(height=64, width=48, channels=3))
    task = Classification(("a", "b", "c", "d", "e"))
    images = np.random.default_rng(0).integers(0, 256, (7, 64, 48, 3), dtype=np.uint8)
    trained = torch_predictor(build(architecture, seed=1), task)(images).probabilities
    packaged = onnx_predictor(export(build(architecture, seed=1), task))(images).probabilities
    assert np.allclose(packaged, trained, atol=1e-5) and packaged.std() > 0
