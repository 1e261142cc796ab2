"""INT8: what is computed in 8 bits and what is not, nearly the same answers, and the same bytes every time."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.packaging.graphs import images, network
from visionloop.errors import StageError
from visionloop.packaging.onnx import IR_VERSION, OPSET
from visionloop.packaging.quantize import quantizable, quantize
from visionloop.packaging.runtime import onnx_predictor


@pytest.fixture(scope="module")
def int8() -> bytes:
    return quantize(network(), images(128))


def weights(model: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}


def test_only_the_network_is_quantized(int8: bytes) -> None:
    assert quantizable(onnx.load_from_string(network()).graph) == [
        *("conv1", "relu1", "pool", "conv2", "residual", "relu2", "flatten", "embed", "relu3"),
    ]
    nodes = {node.name: node for node in onnx.load_from_string(int8).graph.node}
    made_by = {name: node.op_type for node in nodes.values() for name in node.output}
    for name in ("conv1", "conv2", "residual", "embed"):
        inputs = nodes[name].input[:2]
        assert {made_by[tensor] for tensor in inputs} == {"DequantizeLinear"}, name
    for name in ("cast", "scale", "centre", "normalise"):
        assert not any(made_by.get(tensor, "").endswith("Linear") for tensor in nodes[name].input), name
    assert list(nodes["head"].input) == ["embedding", "w4", "b4"] and list(nodes["softmax"].input) == ["logits"]
    assert weights(int8)["w4"].dtype == np.float32


def test_the_contract_of_the_graph_stays(int8: bytes) -> None:
    model = onnx.load_from_string(int8)
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    found = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    assert {name: kind.elem_type for name, kind in found.items()} == {
        "image": TensorProto.UINT8,
        "probabilities": TensorProto.FLOAT,
        "embedding": TensorProto.FLOAT,
    }
    assert len(int8) < 0.5 * len(network())


def test_weights_have_a_scale_per_channel_and_seven_bits(int8: bytes) -> None:
    found = weights(int8)
    assert found["w1_scale"].shape == found["w2_scale"].shape == (8,) and found["w3_scale"].shape == (16,)
    assert np.ptp(found["w1_scale"]) > 0
    for name in ("w1", "w2", "w3"):
        values = found[f"{name}_quantized"]
        assert values.dtype == np.int8 and 60 <= np.abs(values.astype(int)).max() <= 64
    full = weights(quantize(network(), images(128), seven_bits=False))
    assert np.abs(full["w1_quantized"].astype(int)).max() == 127


def test_it_says_nearly_the_same_and_never_quite(int8: bytes) -> None:
    shown = images(400, seed=7)
    exact, rough = onnx_predictor(network())(shown), onnx_predictor(int8)(shown)
    difference = np.abs(exact.probabilities - rough.probabilities).max(1)
    assert 0 < np.median(difference) < 0.03 and difference.max() < 0.2
    assert (exact.probabilities.argmax(1) == rough.probabilities.argmax(1)).mean() > 0.95
    assert rough.probabilities.dtype == np.float32 and np.allclose(rough.probabilities.sum(1), 1, atol=1e-5)


def test_the_batch_changes_no_answer(int8: bytes) -> None:
    shown, predict = images(9, seed=3), onnx_predictor(int8)
    alone = np.concatenate([predict(shown[at : at + 1]).probabilities for at in range(9)])
    assert np.allclose(predict(shown).probabilities, alone, atol=1e-6)


def test_the_same_model_and_images_give_the_same_bytes(int8: bytes) -> None:
    assert quantize(network(), images(128)) == int8
    assert quantize(network(), images(128, seed=2)) != int8  # other ranges
    assert quantize(network(1), images(128)) != int8


def test_no_image_shows_no_range() -> None:
    with pytest.raises(StageError, match=r"found none: packaging.variants: \[fp32\]"):
        quantize(network(), images(0))


def test_a_model_without_weights_is_left_alone() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["float"], ["embedding"], "relu"),
        helper.make_node("Softmax", ["embedding"], ["probabilities"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "none",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("probabilities", "embedding")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(StageError, match="nothing that INT8 makes cheaper"):
        quantize(model.SerializeToString(), np.zeros((4, 4), np.uint8))
