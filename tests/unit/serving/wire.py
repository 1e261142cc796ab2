"""Bodies of KServe v2 inferences as clients send them and Triton answers them: HTTP with JSON or binary, and gRPC."""

import gzip
import json
import zlib

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from visionloop.serving.kserve import Message

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1), np.uint8)
ANSWERS = np.array([[0.1, 0.9], [0.75, 0.25], [0.5, 0.5]], np.float32)


def http_json(images: np.ndarray = IMAGES, answers: np.ndarray = ANSWERS) -> tuple[Message, Message]:
    """Tensors as JSON lists."""
    asked = {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
    said = {"name": "probabilities", "shape": list(answers.shape), "datatype": "FP32", "data": answers.ravel().tolist()}
    return (
        Message({"content-type": "application/json"}, json.dumps({"inputs": [asked]}).encode()),
        Message({}, json.dumps({"model_name": "m", "model_version": "7", "outputs": [said]}).encode()),
    )


def http_binary(images: np.ndarray = IMAGES, answers: np.ndarray = ANSWERS) -> tuple[Message, Message]:
    """Triton's extension: raw tensors behind the JSON head; here the answer has another tensor before ours."""
    other = np.zeros(5, np.float32)
    asked = json.dumps({"inputs": [_raw("image", "UINT8", images)]}).encode()
    outputs = [_raw("embedding", "FP32", other), _raw("probabilities", "FP32", answers)]
    said = json.dumps({"model_name": "m", "model_version": "7", "outputs": outputs}).encode()
    return (
        Message({"inference-header-content-length": str(len(asked))}, asked + images.tobytes()),
        Message({"inference-header-content-length": str(len(said))}, said + other.tobytes() + answers.tobytes()),
    )


def grpc_raw(images: np.ndarray = IMAGES, answers: np.ndarray = ANSWERS, encoding: str = "") -> tuple[Message, Message]:
    """What tritonclient sends."""
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    response = pb.ModelInferResponse(model_name="m", model_version="7")
    response.outputs.add(name="probabilities", datatype="FP32", shape=answers.shape)
    response.raw_output_contents.append(answers.tobytes())
    return _framed(request.SerializeToString(), encoding), _framed(response.SerializeToString(), "")


def grpc_typed(images: np.ndarray = IMAGES, answers: np.ndarray = ANSWERS) -> tuple[Message, Message]:
    """Typed contents instead of raw bytes."""
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    tensor.contents.uint_contents.extend(images.ravel().tolist())
    return _framed(request.SerializeToString(), ""), grpc_raw(images, answers)[1]


def packed(message: Message, encoding: str) -> Message:
    """An HTTP body, compressed."""
    body = gzip.compress(message.body) if encoding == "gzip" else zlib.compress(message.body)
    return Message({**message.headers, "content-encoding": encoding}, body)


def _raw(name: str, datatype: str, array: np.ndarray) -> dict[str, object]:
    size = {"binary_data_size": array.nbytes}
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": size}


def _framed(payload: bytes, encoding: str) -> Message:
    payload = gzip.compress(payload) if encoding else payload
    headers = {"content-type": "application/grpc", **({"grpc-encoding": encoding} if encoding else {})}
    return Message(headers, bytes([bool(encoding)]) + len(payload).to_bytes(4, "big") + payload)
