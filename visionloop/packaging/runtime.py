"""Runs a packaged model with onnxruntime: the champion in an evaluation, the challenger's parity."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import IntegrityError
from visionloop.packaging.graph import INPUT, OUTPUTS
from visionloop.packaging.session import open_session
from visionloop.training.predict import Answers, Predictor

BATCH = 500


def onnx_predictor(model: bytes, *, sha256: str | None = None, threads: int = 1) -> Predictor:
    """A Predictor that runs the ONNX file. Raises IntegrityError when it is not the one that `sha256` names."""
    found = hashlib.sha256(model).hexdigest()
    if sha256 is not None and found != sha256:
        raise IntegrityError(f"model.onnx has SHA-256 {found}, its record says {sha256}")
    session = open_session(model, threads=threads)

    def predict(images_NHWC: NDArray[np.uint8]) -> Answers:
        parts = [
            session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(images_NHWC[start : start + BATCH])})
            for start in range(0, len(images_NHWC), BATCH)
        ]
        return Answers(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))

    return predict
