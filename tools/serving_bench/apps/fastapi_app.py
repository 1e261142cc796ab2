"""FastAPI before an onnxruntime session, as its documentation shows blocking work: in the thread pool. No batching."""

import os

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

SHAPE = [int(side) for side in os.environ["SHAPE"].split(",")]
options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


def answer(body: bytes) -> list[list[float]]:
    """The probabilities of the images in a body of plain bytes."""
    return session.run(["probabilities"], {"image": np.frombuffer(body, np.uint8).reshape(-1, *SHAPE)})[0].tolist()


@app.post("/predict")
async def predict(request: Request) -> list[list[float]]:
    """Images as plain bytes in, probabilities out."""
    return await run_in_threadpool(answer, await request.body())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
