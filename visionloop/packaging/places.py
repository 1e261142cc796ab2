"""Where the network lies in the graph: after the pre-processing, which no weight is part of, up to the embedding."""

import onnx

from visionloop.packaging.graph import INPUT

WEIGHTED = ("Conv", "Gemm", "MatMul")


def before_weights(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that the image goes through before any weight: the pre-processing."""
    seen, names = {INPUT}, set()
    for node in graph.node:  # ONNX asks for a topological order
        if node.op_type not in WEIGHTED and seen & set(node.input):
            seen.update(node.output)
            names.add(node.name)
    return names


def after(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of the nodes that a tensor goes into, at any distance: after the embedding, head and post-processing."""
    reached, names = {tensor}, set()
    for node in graph.node:
        if reached & set(node.input):
            reached.update(node.output)
            names.add(node.name)
    return names
