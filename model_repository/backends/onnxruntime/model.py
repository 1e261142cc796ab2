"""Triton's backend `onnxruntime`, written in Python: it serves the same config.pbtxt as the C++ backend of that name.

The server of the embedded stack comes without the C++ backend. This one reads the same settings
(`default_model_filename` and the parameters below), joins the requests that dynamic batching hands over, runs the
session once for the outputs that somebody asked for, and splits the answers. It needs numpy < 2: the server's bindings
misread numpy 2 without a word.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

DEFAULT_FILENAME = "model.onnx"
SWITCHES = {"enable_mem_arena": "enable_cpu_mem_arena", "enable_mem_pattern": "enable_mem_pattern"}
"""Parameters of the C++ backend that are 0 or 1, and the session option that each sets."""

Arrays = dict[str, np.ndarray]


class InvalidRequest(Exception):
    """The request cannot be answered as it stands; the message goes to the client."""


class TritonPythonModel:
    """One instance of one model version; Triton calls the three methods by these names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of this version. Raises for a numpy that the bindings misread and for inputs that differ."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(f"the backend onnxruntime needs numpy < 2, found {np.__version__} in {np.__file__}")
        self.config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / (self.config.get("default_model_filename") or DEFAULT_FILENAME)
        options = session_options(parameters_of(self.config))
        self.session = ort.InferenceSession(str(path), options, providers=providers(args["model_instance_kind"]))
        self.inputs = check_inputs(self.config, [i.name for i in self.session.get_inputs()])
        self.output_names = [o["name"] for o in self.config["output"]]
        self.batches = int(self.config.get("max_batch_size", 0)) > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, in order; a bad one gets its error and leaves the others alone."""
        feeds = [read_request(request, self.inputs) for request in requests]
        wanted = [request.requested_output_names() for request in requests]
        results = answer(self.session.run, feeds, wanted, batches=self.batches)
        return [respond(result) for result in results]

    def finalize(self) -> None:
        """Let go of the session."""
        del self.session


def answer(run: Any, feeds: Sequence[Any], wanted: Sequence[Sequence[str]], *, batches: bool) -> list[Any]:
    """Return per request its outputs `{name: array}` or the exception that refuses it.

    `run(names, feed)` is the session's. Requests of the same shapes (but for axis 0) share one run where `batches`.
    """
    results: list[Any] = [feed if isinstance(feed, Exception) else None for feed in feeds]
    groups: dict[Any, list[int]] = {}
    for index, feed in enumerate(feeds):
        if not isinstance(feed, Exception):
            groups.setdefault(sample_shapes(feed) if batches else index, []).append(index)
    for members in groups.values():
        answers = run_together(run, [feeds[i] for i in members], [wanted[i] for i in members])
        for index, result in zip(members, answers, strict=True):
            results[index] = result
    return results


def run_together(run: Any, feeds: Sequence[Arrays], wanted: Sequence[Sequence[str]]) -> list[Any]:
    """Run the feeds as one batch and split; when that fails, each by itself, so that only the guilty one is refused."""
    names = sorted(set().union(*wanted))
    try:
        outputs = dict(zip(names, run(names, join(feeds)), strict=True))
        if len(feeds) == 1:
            return [{name: outputs[name] for name in wanted[0]}]
        return split(outputs, [batch_size(feed) for feed in feeds], wanted)
    except Exception as error:  # onnxruntime's errors share no public root; whatever it is goes to the client
        if len(feeds) == 1:
            return [error]
        return [run_together(run, [feed], [one])[0] for feed, one in zip(feeds, wanted, strict=True)]


def join(feeds: Sequence[Arrays]) -> Arrays:
    """Concatenate each input along axis 0."""
    if len(feeds) == 1:
        return dict(feeds[0])
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def split(outputs: Arrays, sizes: Sequence[int], wanted: Sequence[Sequence[str]]) -> list[Arrays]:
    """Cut each output along axis 0 into the requests' shares; raises where the model does not keep the batch axis."""
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != sum(sizes):
            raise InvalidRequest(f"output {name!r} has shape {array.shape} for a batch of {sum(sizes)}: no batch axis")
    ends = np.cumsum(sizes)
    shares = zip(ends - sizes, ends, wanted, strict=True)
    return [{name: outputs[name][start:end] for name in names} for start, end, names in shares]


def batch_size(feed: Arrays) -> int:
    """Length of axis 0."""
    return int(next(iter(feed.values())).shape[0])


def sample_shapes(feed: Arrays) -> tuple[Any, ...]:
    """What two requests must share to run as one batch."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feed.items()))


def read_request(request: Any, inputs: dict[str, list[int]]) -> Any:
    """The request's arrays, or the InvalidRequest that says what is wrong. -1 in `inputs` is any length."""
    feed = {}
    for name, expected in inputs.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return InvalidRequest(f"input {name!r} is missing: the model needs {sorted(inputs)}")
        array = tensor.as_numpy()
        if not fits(array.shape, expected):
            return InvalidRequest(f"input {name!r} has shape {list(array.shape)}, expected {expected} (-1: any)")
        feed[name] = array
    lengths = {name: array.shape[0] for name, array in feed.items() if array.ndim}
    if len(set(lengths.values())) > 1 and all(shape and shape[0] == -1 for shape in inputs.values()):
        return InvalidRequest(f"the inputs differ in batch size: {lengths}")
    return feed


def fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether `shape` has the expected rank and lengths."""
    return len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))


def respond(result: Any) -> Any:
    """Triton's response of an answer or a refusal."""
    if isinstance(result, InvalidRequest):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG))
    if isinstance(result, Exception):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(result).__name__}: {result}"))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])


def check_inputs(config: dict[str, Any], found: Sequence[str]) -> dict[str, list[int]]:
    """Return `{input: shape}` of the config, batch axis included; raises ValueError where the model's inputs differ."""
    batch = [-1] if int(config.get("max_batch_size", 0)) > 0 else []
    shapes = {item["name"]: batch + [int(d) for d in item["dims"]] for item in config["input"]}
    if sorted(shapes) != sorted(found):
        raise ValueError(f"config.pbtxt has the inputs {sorted(shapes)}, the model has {sorted(found)}")
    return shapes


def parameters_of(config: dict[str, Any]) -> dict[str, str]:
    """The config's parameters as plain text."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def session_options(parameters: dict[str, str]) -> Any:
    """Translate the C++ backend's parameters.

    Threads do not spin, since the machine's cores are shared: they would answer a ResNet-18's single image half a
    millisecond sooner on an idle machine, and a fifth later beside a busy process.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
    if parameters.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    for parameter, option in SWITCHES.items():
        if parameter in parameters:
            setattr(options, option, parameters[parameter] == "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def providers(kind: str) -> list[str]:
    """Execution providers of an instance kind; CUDA only where this onnxruntime has it."""
    cuda = "GPU" in kind and "CUDAExecutionProvider" in ort.get_available_providers()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
