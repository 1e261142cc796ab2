"""FP16: half the bytes, 16 bits inside the network only, nearly the same answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.unit.packaging.graphs import images, network
from visionloop.errors import StageError
from visionloop.packaging.half import halve
from visionloop.packaging.onnx import IR_VERSION, OPSET
from visionloop.packaging.runtime import onnx_predictor


def test_the_network_is_16_bits_and_nothing_else_is() -> None:
    model = onnx.load_from_string(halve(network()))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16} == {"w1", "b1", "w2", "b2", "w3", "b3"}
    assert {kinds[name] for name in ("white", "mean", "std", "w4", "b4")} == {TensorProto.FLOAT}
    found = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert found == {"image": TensorProto.UINT8, "probabilities": TensorProto.FLOAT, "embedding": TensorProto.FLOAT}
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]


def test_half_the_bytes_and_nearly_the_same_answers() -> None:
    half = halve(network())
    assert len(half) < 0.6 * len(network())
    shown = images(300, seed=5)
    exact, rough = onnx_predictor(network())(shown), onnx_predictor(half)(shown)
    difference = np.abs(exact.probabilities - rough.probabilities).max()
    assert 0 < difference < 5e-3
    assert (exact.probabilities.argmax(1) == rough.probabilities.argmax(1)).mean() > 0.99
    # Not rounded on the way out: a softmax in 16 bits would be.
    assert (rough.probabilities.astype(np.float16) != rough.probabilities).any()


def test_the_same_model_gives_the_same_bytes() -> None:
    assert halve(network()) == halve(network())


def test_what_cannot_be_converted_is_said() -> None:
    model = onnx.load_from_string(network())
    del model.graph.initializer[:]
    with pytest.raises(StageError, match=r"cannot be FP16, leave it out of packaging\.variants"):
        halve(model.SerializeToString())
