"""The ONNX file: what the servers expect of it, and that it says what the trained model says."""

import hashlib
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from tests.unit.training.shapes import TASK, samples
from visionloop.errors import IntegrityError
from visionloop.packaging.onnx import IR_VERSION, OPSET, export
from visionloop.packaging.runtime import BATCH, onnx_predictor
from visionloop.project import ImageShape, Task
from visionloop.tasks import open_task
from visionloop.training.model import Architecture, VisionModel, build
from visionloop.training.predict import torch_predictor

COLOUR = Task(classes=["a", "b", "c"], image=ImageShape(height=40, width=32, channels=3))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def built(task: Task) -> VisionModel:
    return build(Architecture("small_cnn", len(task.classes), task.image), seed=2)


@cache
def exported(*, colour: bool = False) -> bytes:
    task = COLOUR if colour else TASK
    return export(built(task), open_task(task))


def images(task: Task, count: int) -> np.ndarray:
    shape = task.image
    size = (count, shape.height, shape.width, shape.channels)
    return np.random.default_rng(count).integers(0, 256, size, dtype=np.uint8)


def test_names_types_and_shapes_are_the_contract() -> None:
    graph = onnx.load_from_string(exported()).graph
    found = {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    assert found == {
        "image": ("UINT8", ["batch", 28, 28, 1]),
        "probabilities": ("FLOAT", ["batch", 4]),
        "embedding": ("FLOAT", ["batch", 32]),
    }


def test_it_is_what_the_production_container_can_read() -> None:
    model = onnx.load_from_string(exported())
    assert model.ir_version == IR_VERSION == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not model.graph.doc_string and not any(node.metadata_props for node in model.graph.node)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_exporting_again_gives_the_same_bytes_and_leaves_the_model_as_it_was() -> None:
    model = built(TASK).eval()
    before = torch_predictor(model, open_task(TASK))(images(TASK, 4)).probabilities
    assert export(model, open_task(TASK)) == exported()
    assert np.array_equal(torch_predictor(model, open_task(TASK))(images(TASK, 4)).probabilities, before)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_says_what_the_trained_model_says_in_any_batch(colour: bool, count: int) -> None:
    task = COLOUR if colour else TASK
    shown = images(task, count)
    trained = torch_predictor(built(task), open_task(task))(shown)
    packaged = onnx_predictor(exported(colour=colour))(shown)
    assert packaged.probabilities.shape == (count, len(task.classes)) and packaged.probabilities.dtype == np.float32
    assert np.allclose(packaged.probabilities, trained.probabilities, atol=1e-5)
    assert np.allclose(packaged.embeddings, trained.embeddings, atol=1e-4)
    assert np.allclose(packaged.probabilities.sum(1), 1.0, atol=1e-5)


def test_more_than_one_batch_keeps_the_order() -> None:
    shown = samples(BATCH + 3).images
    predict = onnx_predictor(exported())
    whole = predict(shown).probabilities
    assert len(whole) == BATCH + 3
    assert np.allclose(whole[-3:], predict(shown[-3:]).probabilities, atol=1e-6)
    assert np.allclose(whole[:2], predict(shown[:2]).probabilities, atol=1e-6)


def test_only_the_model_that_the_record_names_is_run() -> None:
    digest = hashlib.sha256(exported()).hexdigest()
    assert len(onnx_predictor(exported(), sha256=digest)(images(TASK, 1)).probabilities) == 1
    with pytest.raises(IntegrityError, match=f"SHA-256 {digest}, its record says {'0' * 64}"):
        onnx_predictor(exported(), sha256="0" * 64)
