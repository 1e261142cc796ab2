"""Where the network lies in the graph: after the pre-processing, which no weight is part of, up to the embedding."""

import onnx

from visionloop.packaging.graph import INPUT

WEIGHTED = ("Conv", "Gemm", "MatMul")


def before_weights(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that the image goes through before any weight: pre-processing, and sums about its shape."""
    early: set[str] = {INPUT}
    late: set[str] = set()
    names: set[str] = set()
    for node in graph.node:  # ONNX asks for a topological order
        inputs = set(node.input)
        if node.op_type in WEIGHTED or inputs & late:
            late.update(node.output)
        elif inputs & early:
            early.update(node.output)
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
