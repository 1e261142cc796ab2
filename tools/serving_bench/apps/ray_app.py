"""Ray Serve with `@serve.batch`, one replica, as its guide on dynamic request batching shows it."""

import os
import signal

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request

SHAPE = [int(side) for side in os.environ["SHAPE"].split(",")]


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Classifier:
    """One session; requests that wait together are answered together."""

    def __init__(self, model: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def answer(self, bodies: list[bytes]) -> list[list[float]]:
        """Probabilities, one list an image."""
        images = np.stack([np.frombuffer(body, np.uint8).reshape(SHAPE) for body in bodies])
        return self.session.run(["probabilities"], {"image": images})[0].tolist()

    async def __call__(self, request: Request) -> list[list[float]]:
        return [await self.answer(await request.body())]


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Classifier.bind(os.environ["MODEL"], int(os.environ["THREADS"])), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
