"""INT8: weights and activations of the network as 8 bits (QDQ, per channel), by ranges seen on real samples.

Pre-processing (cast, scale, normalisation) and what follows the embedding (head, softmax) stay float32. Weights use
seven of their eight bits: processors without VNNI add pairs of products in 16 bits, which full range overflows, and a
model would answer otherwise on the edge than where it was tested. The same model and images give the same bytes.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from visionloop.errors import StageError
from visionloop.packaging.graph import EMBEDDING, INPUT
from visionloop.packaging.onnx import pinned
from visionloop.packaging.places import WEIGHTED, after, before_weights

log = logging.getLogger(__name__)

BETWEEN = ("Add", "MaxPool", "Relu", "Clip", "Flatten", "Reshape")
"""Operations that go on in 8 bits between two weighted ones, so that a residual block never leaves them."""
BATCH = 64


def quantize(model: bytes, images_NHWC: NDArray[np.uint8], *, seven_bits: bool = True) -> bytes:
    """The INT8 file. Raises StageError for a model that cannot be quantized, and where no image shows the ranges."""
    if not len(images_NHWC):
        raise StageError("INT8 needs training samples to calibrate on, found none: packaging.variants: [fp32]")
    proto = onnx.load_from_string(model)
    chosen = quantizable(proto.graph)
    if not chosen:
        raise StageError("the model has nothing that INT8 makes cheaper: packaging.variants: [fp32]")
    add_pre_process_metadata(proto)  # shapes are inferred and batch norms folded by the export
    try:
        quantized = _quantized(proto, _Images(images_NHWC), chosen, seven_bits=seven_bits)
        data = pinned(quantized)
    except (ValueError, RuntimeError, KeyError, onnx.checker.ValidationError) as error:
        raise StageError(f"the model cannot be quantized, packaging.variants: [fp32] leaves it out: {error}") from error
    log.info("quantized %d of %d nodes on %d images", len(chosen), len(proto.graph.node), len(images_NHWC))
    return data


def quantizable(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes from the first weighted one up to the embedding: what is computed in 8 bits."""
    outside = before_weights(graph) | after(graph, EMBEDDING)
    return [node.name for node in graph.node if node.op_type in WEIGHTED + BETWEEN and node.name not in outside]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """The images, batch by batch, as the quantizer asks for them."""

    def __init__(self, images_NHWC: NDArray[np.uint8]) -> None:
        starts = range(0, len(images_NHWC), BATCH)
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = iter(
            {INPUT: np.ascontiguousarray(images_NHWC[start : start + BATCH])} for start in starts
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)


def _quantized(proto: onnx.ModelProto, images: _Images, nodes: list[str], *, seven_bits: bool) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="visionloop-int8-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            path,
            images,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*WEIGHTED, *BETWEEN],
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=seven_bits,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)
