"""LitServe with its batching (`max_batch_size`, `batch_timeout`), images as base64 in JSON, as its guide has them."""

import base64
import os

import litserve as ls
import numpy as np
import onnxruntime as ort

SHAPE = [int(side) for side in os.environ["SHAPE"].split(",")]


class Classifier(ls.LitAPI):
    """One worker, one session."""

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(SHAPE)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": images})[0]

    def encode_response(self, output: np.ndarray) -> list[list[float]]:
        return [output.tolist()]


if __name__ == "__main__":
    api = Classifier(max_batch_size=64, batch_timeout=0.01)
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
