"""Exports a model to ONNX: uint8 NHWC images in, probabilities and embedding out, any batch size.

Opset and IR version are pinned to what the production container's onnxruntime (1.19 in Triton 24.10) can read.
"""

import io
import logging

import onnx
import torch
from torch import Tensor, nn

from visionloop.errors import StageError
from visionloop.packaging.graph import INPUT, OUTPUTS
from visionloop.tasks.task import VisionTask
from visionloop.training.model import VisionModel
from visionloop.training.small_cnn import folded

log = logging.getLogger(__name__)

OPSET = 18
IR_VERSION = 10


class Served(nn.Module):
    """The model with its task's post-processing: what the graph contains."""

    def __init__(self, model: nn.Module, task: VisionTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, C] -> float32 probabilities [B, K], float32 embedding [B, D]."""
        logits, embedding = self.model(image)
        return self.task.probabilities(logits), embedding.float()


def export(model: VisionModel, task: VisionTask) -> bytes:
    """The ONNX file, checked. Raises StageError when the model has an operation that ONNX has not."""
    shape = model.architecture.image
    served = Served(_plain(model), task).eval()
    # Batch 2: an exporter that sees 1 takes it for a constant.
    example = torch.zeros(2, shape.height, shape.width, shape.channels, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            served,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise StageError(f"{model.architecture.backbone} cannot be exported to ONNX: {error}") from error
    assert program is not None
    data = pinned(program.model_proto)
    log.info("exported ONNX opset %d, IR %d, %d bytes", OPSET, IR_VERSION, len(data))
    return data


def _plain(model: VisionModel) -> nn.Module:
    """A copy for the CPU, in ONNX's own memory format: channels last, a pooling becomes a gather over strides."""
    copied = folded(model).to("cpu").to(memory_format=torch.contiguous_format)
    assert isinstance(copied, VisionModel)
    copied.channels_last = False
    return copied


def pinned(proto: onnx.ModelProto) -> bytes:
    """The file of a model, checked: IR version and opset as pinned, and nothing in it that names this machine."""
    proto.ir_version = IR_VERSION
    for entry in proto.opset_import:
        if entry.domain == "" and entry.version != OPSET:
            raise StageError(f"the exporter wrote opset {entry.version}, expected {OPSET}")
    for entry in [*proto.graph.node, proto.graph]:
        entry.doc_string = ""
        if isinstance(entry, onnx.NodeProto):
            del entry.metadata_props[:]  # the exporter's stack traces name this machine's folders
    for info in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del info.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(proto, buffer)
    return buffer.getvalue()
