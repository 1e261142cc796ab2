"""config.pbtxt: it parses as Triton's own message and says what the project file says."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from visionloop.project import Project, parse_project
from visionloop.serving.repository import VERSION
from visionloop.serving.triton_config import LABELS, TIMEOUT_MS, render

TEXT = """\
project: screws
task: {classes: [good, bent, broken], image: {height: 48, width: 32, channels: 3}}
suite: {scenarios: [{name: overall}]}
release: {approval: automatic}
"""


def project(more: str = "") -> Project:
    return parse_project(TEXT + more, Path("project.yaml"))


def parsed(more: str = "", version: int = 7) -> pb.ModelConfig:
    return text_format.Parse(render(project(more), version), pb.ModelConfig())


def test_inputs_and_outputs_are_the_contract() -> None:
    config = parsed()
    assert (config.name, config.backend, config.default_model_filename) == ("screws", "onnxruntime", "model.onnx")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("image", pb.TYPE_UINT8, [48, 32, 3])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [("probabilities", pb.TYPE_FP32, [3])]


@pytest.mark.parametrize("version", [1, 12])
def test_one_version_is_served_and_can_be_read_back(version: int) -> None:
    assert list(parsed(version=version).version_policy.specific.versions) == [version]
    found = VERSION.search(render(project(), version))
    assert found is not None
    assert int(found.group(1)) == version


def test_the_policy_comes_from_the_project_file() -> None:
    config = parsed("serving: {max_batch_size: 16, instances: 2, threads: 3, queue_delay_us: 500}\n")
    assert config.max_batch_size == 16
    assert [group.count for group in config.instance_group] == [2]
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500


def test_the_same_file_serves_on_a_gpu() -> None:
    """No kind: Triton takes a GPU where there is one."""
    assert "kind" not in render(project(), 1)


def test_a_model_that_cannot_run_fails_its_load() -> None:
    [warmup] = parsed().model_warmup
    assert list(warmup.inputs["image"].dims) == [48, 32, 3]
    assert warmup.inputs["image"].zero_data


def test_the_classes_go_along_for_clients() -> None:
    assert json.loads(parsed().parameters[LABELS].string_value) == ["good", "bent", "broken"]


def test_so_does_the_time_that_a_request_has() -> None:
    assert parsed().parameters[TIMEOUT_MS].string_value == "10000"
    assert parsed("serving: {timeout_ms: 30000}\n").parameters[TIMEOUT_MS].string_value == "30000"
