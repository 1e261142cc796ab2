"""Triton's backend `onnxruntime`: joins requests, runs once, splits, and refuses only the guilty one."""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[3] / "model_repository" / "backends" / "onnxruntime" / "model.py"


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError:
    INVALID_ARG = "INVALID_ARG"

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self.message, self.code = message, code


class Session:
    """Doubles `x`, and records what it was asked; fails for a negative sample."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []

    def run(self, names: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        x = feed["x"]
        self.calls.append((list(names), len(x)))
        if (x < 0).any():
            raise RuntimeError("negative")
        return [{"y": x * 2.0, "z": x.sum(axis=1)}[name] for name in names]


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The backend's module, with Triton's bindings as plain objects."""
    sys.modules["triton_python_backend_utils"] = SimpleNamespace(  # type: ignore[assignment]
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error),
        get_input_tensor_by_name=lambda request, name: request.get(name),
    )
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["triton_python_backend_utils"]


def feed(rows: int, start: int = 0, width: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, start + rows * width, dtype=np.float32).reshape(rows, width)}


def test_requests_of_one_shape_share_one_run_and_get_their_own_rows(backend: ModuleType) -> None:
    session, feeds = Session(), [feed(2), feed(1, 50), feed(3, 90)]
    answers = backend.answer(session.run, feeds, [["y"]] * 3, batches=True)
    assert session.calls == [(["y"], 6)]
    for asked, got in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(got["y"], asked["x"] * 2)


def test_each_gets_the_outputs_that_it_asked_for(backend: ModuleType) -> None:
    session = Session()
    answers = backend.answer(session.run, [feed(1), feed(2)], [["z"], ["y", "z"]], batches=True)
    assert session.calls == [(["y", "z"], 3)]
    assert [set(a) for a in answers] == [{"z"}, {"y", "z"}]


def test_an_output_that_nobody_wants_is_not_computed(backend: ModuleType) -> None:
    session = Session()
    backend.answer(session.run, [feed(1)], [["z"]], batches=True)
    assert session.calls == [(["z"], 1)]


def test_other_shapes_run_apart(backend: ModuleType) -> None:
    session = Session()
    answers = backend.answer(session.run, [feed(2), feed(1, width=4), feed(1)], [["y"]] * 3, batches=True)
    assert sorted(session.calls) == [(["y"], 1), (["y"], 3)]
    assert [a["y"].shape for a in answers] == [(2, 3), (1, 4), (1, 3)]


def test_a_model_without_batch_axis_runs_each_by_itself(backend: ModuleType) -> None:
    session = Session()
    backend.answer(session.run, [feed(1), feed(1)], [["y"]] * 2, batches=False)
    assert session.calls == [(["y"], 1)] * 2


def test_only_the_guilty_request_fails(backend: ModuleType) -> None:
    answers = backend.answer(Session().run, [feed(1), feed(1, -9), feed(2)], [["y"]] * 3, batches=True)
    assert isinstance(answers[1], RuntimeError)
    assert answers[0]["y"].shape == (1, 3) and answers[2]["y"].shape == (2, 3)


def test_an_output_without_batch_axis_is_refused_in_words(backend: ModuleType) -> None:
    def run(names: Sequence[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((1, 5))]

    with pytest.raises(backend.InvalidRequest, match=r"output 'y' has shape \(1, 5\) for a batch of 3"):
        backend.split({"y": run(["y"], {})[0]}, [1, 2], [["y"], ["y"]])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, r"input 'x' is missing"),
        ({"x": Tensor("x", np.zeros((2, 4)))}, r"shape \[2, 4\], expected \[-1, 3\]"),
        ({"x": Tensor("x", np.zeros(3))}, r"shape \[3\], expected \[-1, 3\]"),
    ],
)
def test_a_bad_request_is_refused_by_its_shape(backend: ModuleType, request_: dict[str, Any], message: str) -> None:
    refused = backend.read_request(request_, {"x": [-1, 3]})
    with pytest.raises(backend.InvalidRequest, match=message):
        raise refused
    response = backend.respond(refused)
    assert response.error.code == TritonError.INVALID_ARG


def test_any_length_fits_where_the_config_says_so(backend: ModuleType) -> None:
    read = backend.read_request({"x": Tensor("x", np.zeros((7, 3)))}, {"x": [-1, 3]})
    assert read["x"].shape == (7, 3)


def test_inputs_that_differ_in_batch_size_are_refused(backend: ModuleType) -> None:
    request = {"a": Tensor("a", np.zeros((2, 1))), "b": Tensor("b", np.zeros((3, 1)))}
    refused = backend.read_request(request, {"a": [-1, 1], "b": [-1, 1]})
    assert "differ in batch size" in str(refused)


def config(**changes: object) -> dict[str, Any]:
    return {"max_batch_size": 8, "input": [{"name": "x", "dims": ["3"]}], "output": [{"name": "y"}], **changes}


def test_the_config_gives_the_shapes(backend: ModuleType) -> None:
    assert backend.check_inputs(config(), ["x"]) == {"x": [-1, 3]}
    assert backend.check_inputs(config(max_batch_size=0), ["x"]) == {"x": [3]}
    with pytest.raises(ValueError, match=r"config.pbtxt has the inputs \['x'\], the model has \['image'\]"):
        backend.check_inputs(config(), ["image"])


def test_parameters_are_those_of_the_c_backend(backend: ModuleType) -> None:
    given = {"intra_op_thread_count": {"string_value": "3"}, "enable_mem_arena": {"string_value": "0"}}
    options = backend.session_options(backend.parameters_of(config(parameters=given)))
    assert options.intra_op_num_threads == 3
    assert options.enable_cpu_mem_arena is False
    assert options.enable_mem_pattern is True


def test_it_will_not_run_on_a_numpy_that_the_bindings_misread(backend: ModuleType) -> None:
    if int(np.__version__.split(".")[0]) < 2:
        pytest.fail("this environment is expected to have numpy 2, the stub's own has numpy 1")
    with pytest.raises(RuntimeError, match="needs numpy < 2, found 2"):
        backend.TritonPythonModel().initialize({"model_config": json.dumps(config())})
