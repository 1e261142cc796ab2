"""BentoML with adaptive batching (`batchable=True`), images as base64 in JSON."""

import base64
import os

import bentoml
import numpy as np
import onnxruntime as ort

SHAPE = [int(side) for side in os.environ["SHAPE"].split(",")]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256})
class Classifier:
    """One worker, one session."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def predict(self, images: list[str]) -> list[list[float]]:
        """Probabilities, one list an image."""
        batch = np.stack([np.frombuffer(base64.b64decode(image), np.uint8).reshape(SHAPE) for image in images])
        return self.session.run(["probabilities"], {"image": batch})[0].tolist()
