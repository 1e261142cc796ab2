"""FP16: weights and activations of the network as 16-bit floats, for GPUs, which compute them several times faster.

As in INT8, pre-processing and what follows the embedding stay float32, and so do the outputs.
"""

from collections.abc import Iterable

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from visionloop.errors import StageError
from visionloop.packaging.graph import EMBEDDING
from visionloop.packaging.onnx import pinned
from visionloop.packaging.places import after, before_weights


def halve(model: bytes) -> bytes:
    """The FP16 file. Raises StageError for a model that cannot be converted."""
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
        return pinned(_halved(proto))
    except (ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise StageError(f"the model cannot be FP16, leave it out of packaging.variants: {error}") from error


def _halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network is cut out, converted with casts at its borders, and put back between what stays."""
    graph = proto.graph
    first, last = before_weights(graph), after(graph, EMBEDDING)
    head = [node for node in graph.node if node.name in first]
    tail = [node for node in graph.node if node.name in last]
    network = [node for node in graph.node if node.name not in first | last]
    entering = sorted(
        {name for node in network for name in node.input} & {name for node in head for name in node.output}
    )
    cut = onnx.utils.Extractor(proto).extract_model(entering, [EMBEDDING])
    half = convert_float_to_float16(cut, keep_io_types=True).graph
    needed = {name for node in (*head, *tail) for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    weights = [tensor for tensor in half.initializer if tensor.name not in {tensor.name for tensor in kept}]
    known = {tensor.name for tensor in (*kept, *weights)} | {*entering, ""}
    made = onnx.helper.make_graph(
        [*head, *_sorted(half.node, known), *tail], graph.name, graph.input, graph.output, [*kept, *weights]
    )
    return onnx.helper.make_model(made, opset_imports=proto.opset_import, producer_name=proto.producer_name)


def _sorted(nodes: Iterable[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Each node after those that make its inputs; the converter appends its casts at the end."""
    waiting, done = list(nodes), []
    while waiting:
        ready = next((node for node in waiting if known.issuperset(node.input)), None)
        if ready is None:
            raise ValueError(f"{waiting[0].name} has an input that nothing makes")
        waiting.remove(ready)
        known.update(ready.output)
        done.append(ready)
    return done
