"""The `config.pbtxt` of a model: the same text serves with this stack's backend and with the production container."""

import json
from typing import Any

from visionloop.errors import IntegrityError
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.project import Project

LABELS = "visionloop_labels"
"""Parameter with the classes' names (JSON), which no backend reads: clients learn them from the endpoint."""
TIMEOUT_MS = "visionloop_timeout_ms"
"""... with `serving.timeout_ms`, as the project had it when the model was packaged."""
GOLDEN_SHA256 = "visionloop_golden_sha256"
"""... and with the digest of golden.npz: the signature, which covers this file, so vouches for those answers too."""


def render(project: Project, version: int, *, golden_sha256: str | None = None) -> str:
    """Triton's configuration of one version, as protobuf text."""
    from google.protobuf import text_format

    config = model_config(project, version)
    if golden_sha256:
        config.parameters[GOLDEN_SHA256].string_value = golden_sha256
    return str(text_format.MessageToString(config))


def parse(text: str) -> Any:
    """The `ModelConfig` that `render` wrote. Raises IntegrityError for a text that is none."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise IntegrityError(f"config.pbtxt cannot be read: {error}") from None


def render_json(project: Project, version: int, *, name: str) -> str:
    """The same under another name, as a load request takes it."""
    from google.protobuf import json_format

    config = model_config(project, version)
    config.name = name
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def model_config(project: Project, version: int) -> Any:
    """The `ModelConfig` of one version.

    Input `image` UINT8 [N,H,W,C], output `probabilities` FP32 [N,classes]. The graph's further outputs stay unlisted.
    `kind` of the instances is left out, so that Triton takes a GPU where there is one. A black image warms each
    instance up: a model that cannot run fails its load instead of its first request.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    policy = project.serving
    shape = project.task.image
    dims = [shape.height, shape.width, shape.channels]
    return pb.ModelConfig(
        name=project.name,
        backend="onnxruntime",
        default_model_filename="model.onnx",
        max_batch_size=policy.max_batch_size,
        version_policy=pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=[version])),
        input=[pb.ModelInput(name=INPUT, data_type=pb.TYPE_UINT8, dims=dims)],
        output=[pb.ModelOutput(name=PROBABILITIES, data_type=pb.TYPE_FP32, dims=[len(project.task.classes)])],
        instance_group=[pb.ModelInstanceGroup(count=policy.instances)],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=policy.queue_delay_us),
        parameters={
            "intra_op_thread_count": pb.ModelParameter(string_value=str(policy.threads)),
            LABELS: pb.ModelParameter(string_value=json.dumps(project.task.classes)),
            TIMEOUT_MS: pb.ModelParameter(string_value=str(policy.timeout_ms)),
        },
        model_warmup=[_warmup(pb, dims)],
    )


def _warmup(pb: Any, dims: list[int]) -> Any:
    black = pb.ModelWarmup.Input(data_type=pb.TYPE_UINT8, dims=dims, zero_data=True)
    return pb.ModelWarmup(name="black", batch_size=1, inputs={INPUT: black})
