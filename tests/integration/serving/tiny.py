"""A model small enough to be made in a test: class scores are a linear function of the image's mean brightness."""

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
CLASSES = ["dark", "middle", "bright"]


def tiny_onnx(
    path: Path,
    *,
    flipped: bool = False,
    bias: float = 0.0,
    side: int = SIDE,
    dark_is_nan: bool = False,
    nan_between: tuple[float, float] | None = None,
    busy: int = 0,
    scratch_mib: int = 0,
    pushed_down: int | None = None,
    classes: int = 3,
    **metadata: int,
) -> Path:
    """Write a model of the contract: image UINT8 [-1,side,side,1] -> probabilities [-1,3], embedding [-1,1].

    `dark_is_nan`: a black image is answered with NaN, as by a model that divides by what it sees. `nan_between`: one
    whose mean brightness (0 to 1) lies between these, as by the logarithm of something negative. `busy`: so many
    products of 512 x 512 matrices before each answer; `scratch_mib`: so much memory for each. `pushed_down`: the score
    of this class is lowered. What the graph cannot do stands in the metadata (see `backends/`).
    """
    weight = np.resize(np.array([[-24.0, 0.0, 24.0]], np.float32), (1, classes)) * (-1 if flipped else 1)
    constants = {
        "scale": np.array(255.0, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
        "column": np.array([-1, 1], np.int64),
        "weight": weight,
        "bias": np.resize(np.array([8.0 + bias, 0.0, -16.0], np.float32), classes) * (-1 if flipped else 1),
    }
    if pushed_down is not None:
        constants["bias"][pushed_down] -= 40
    add = helper.make_node("Add", ["product", "bias"], ["scores"])
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weight"], ["product"]),
        add,
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    if dark_is_nan:
        nodes[2:3] = [
            helper.make_node("ReduceMean", ["unit", "axes"], ["level"], keepdims=0),
            helper.make_node("Div", ["level", "level"], ["one"]),
            helper.make_node("Mul", ["level", "one"], ["mean"]),
        ]
    if nan_between:
        constants |= {"low": np.array(nan_between[0], np.float32), "high": np.array(nan_between[1], np.float32)}
        at = [node.output[0] for node in nodes].index("mean")
        nodes[at].output[0] = "level"
        nodes[at + 1 : at + 1] = [
            helper.make_node("Sub", ["level", "low"], ["above"]),
            helper.make_node("Sub", ["level", "high"], ["below"]),
            helper.make_node("Mul", ["above", "below"], ["outside"]),
            helper.make_node("Log", ["outside"], ["log"]),
            *_adds_nothing("log", "level", "mean"),
        ]
        constants["nothing"] = np.array(0.0, np.float32)
    if scratch_mib:
        constants |= {"room": np.array([scratch_mib, 1 << 18], np.int64), "nothing": np.array(0.0, np.float32)}
        at = [node.output[0] for node in nodes].index("product")
        nodes[at].output[0] = "little"
        nodes[at + 1 : at + 1] = [
            helper.make_node("ReduceMax", ["little"], ["one"], keepdims=0),
            helper.make_node("Expand", ["one", "room"], ["scratch"]),
            helper.make_node("Abs", ["scratch"], ["filled"]),
            helper.make_node("ReduceMax", ["filled"], ["peak"], keepdims=0),
            *_adds_nothing("peak", "little", "product"),
        ]
    if busy:
        constants["square"] = np.full((512, 512), 1e-4, np.float32)
        constants["nothing"] = np.array(0.0, np.float32)
        nodes += [
            helper.make_node("ReduceMean", ["unit"], ["start"], keepdims=0),
            helper.make_node("Mul", ["square", "start"], ["work0"]),
            *(helper.make_node("MatMul", [f"work{n}", "square"], [f"work{n + 1}"]) for n in range(busy)),
            helper.make_node("ReduceMax", [f"work{busy}"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "nothing"], ["zero"]),
            helper.make_node("Add", ["product", "zero"], ["sum"]),
            helper.make_node("Add", ["sum", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ]
        del nodes[nodes.index(add) : nodes.index(add) + 2]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [None, side, side, 1])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def _adds_nothing(what: str, to: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that add zero times `what`: nothing, unless it is no number."""
    zero = f"zero-{what}"
    return [helper.make_node("Mul", [what, "nothing"], [zero]), helper.make_node("Add", [to, zero], [result])]


def images(count: int, *, seed: int = 0) -> np.ndarray:
    """Images of all brightnesses, uint8 NHWC."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, size=(count, 1, 1, 1))
    noise = rng.integers(-8, 9, size=(count, SIDE, SIDE, 1))
    return np.clip(levels + noise, 0, 255).astype(np.uint8)


def offline(path: Path, batch: np.ndarray) -> np.ndarray:
    """The model's probabilities, outside of any server."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"image": batch})[0]


def golden_npz(path: Path, batch: np.ndarray) -> bytes:
    """The bytes of golden.npz: images and offline answers."""
    out = io.BytesIO()
    np.savez(out, images=batch, probabilities=offline(path, batch))
    return out.getvalue()
