"""A small network as the exporter would write it, made by hand in no time: pre-processing, residual block, head."""

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES, WIDTH = 12, 4, 16


@cache
def network(seed: int = 0) -> bytes:
    """uint8 [N, 12, 12, 1] -> probabilities [N, 4], embedding [N, 16]; opset 18, IR 10."""
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    constants = {
        "white": np.float32(255),
        "mean": np.float32(0.5),
        "std": np.float32(0.25),
        "w1": weights(8, 1, 3, 3) * np.linspace(0.2, 3, 8, dtype=np.float32).reshape(8, 1, 1, 1),
        "b1": weights(8, 1)[:, 0],
        "w2": weights(8, 8, 3, 3),
        "b2": weights(8, 1)[:, 0],
        "flat": np.array([-1, 8 * 36]),
        "w3": weights(WIDTH, 8 * 36),
        "b3": weights(WIDTH, 1)[:, 0],
        "w4": weights(CLASSES, WIDTH),
        "b4": weights(CLASSES, 1)[:, 0],
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], "permute", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"], "scale"),
        helper.make_node("Sub", ["unit", "mean"], ["centred"], "centre"),
        helper.make_node("Div", ["centred", "std"], ["normal"], "normalise"),
        helper.make_node("Conv", ["normal", "w1", "b1"], ["c1"], "conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", **conv),
        helper.make_node("Add", ["c2", "p1"], ["sum"], "residual"),
        helper.make_node("Relu", ["sum"], ["r2"], "relu2"),
        helper.make_node("Reshape", ["r2", "flat"], ["row"], "flatten"),
        helper.make_node("Gemm", ["row", "w3", "b3"], ["e"], "embed", transB=1),
        helper.make_node("Relu", ["e"], ["embedding"], "relu3"),
        helper.make_node("Gemm", ["embedding", "w4", "b4"], ["logits"], "head", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 1])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def images(count: int, seed: int = 1) -> np.ndarray:
    """uint8 [N, 12, 12, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
