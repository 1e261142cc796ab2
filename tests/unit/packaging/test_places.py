"""Places: pre-processing ends where a weight is, whatever else the image's shape is used for."""

import onnx
from onnx import TensorProto, helper

from tests.unit.packaging.graphs import network
from visionloop.packaging.places import after, before_weights


def test_the_network_lies_between() -> None:
    graph = onnx.load_from_string(network()).graph
    assert before_weights(graph) == {"permute", "cast", "scale", "centre", "normalise"}
    assert after(graph, "embedding") == {"head", "softmax"}
    assert after(graph, "probabilities") == set()


def test_a_node_that_reads_the_shape_of_the_image_and_a_weighted_tensor_is_inside() -> None:
    nodes = [
        helper.make_node("Shape", ["image"], ["size"], "size"),
        helper.make_node("Concat", ["size", "rest"], ["wanted"], "wanted", axis=0),
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["float", "w"], ["m"], "weights"),
        helper.make_node("Reshape", ["m", "wanted"], ["shaped"], "shaped"),
        helper.make_node("Add", ["shaped", "b"], ["embedding"], "bias"),
        helper.make_node("Softmax", ["embedding"], ["probabilities"], "softmax"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert before_weights(graph) == {"size", "wanted", "cast"}
    assert after(graph, "embedding") == {"softmax"}
