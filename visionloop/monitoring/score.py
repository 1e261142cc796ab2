"""The champion's own view of images: class probabilities and embeddings, by its ONNX file."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import IntegrityError, StageError
from visionloop.monitoring.properties import properties, property_names, rows_at_once
from visionloop.monitoring.samples import Samples
from visionloop.packaging.graph import INPUT, OUTPUTS
from visionloop.packaging.session import open_session

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float32]


class Scorer:
    """Runs a packaged model: input `image` uint8 NHWC, outputs `probabilities` [N, K] and `embedding` [N, D]."""

    def __init__(self, model: bytes, sha256: str) -> None:
        """Raises IntegrityError when the bytes are not the ones the record vouches for, StageError for a bad model."""
        found = hashlib.sha256(model).hexdigest()
        if found != sha256:
            raise IntegrityError(f"model.onnx has SHA-256 {found}, its candidate's record says {sha256}")
        self._session = open_session(model)
        outputs = {output.name for output in self._session.get_outputs()}
        missing = [name for name in OUTPUTS if name not in outputs]
        if missing:
            raise StageError(f"the champion's model has outputs {sorted(outputs)}, the monitor needs {missing} too")

    def score(self, images_NHWC: Pixels) -> tuple[Matrix, Matrix]:
        """Probabilities [N, K] and embeddings [N, D], float32, in batches of bounded size (N >= 1)."""
        step = min(256, rows_at_once(*images_NHWC.shape[1:]))
        parts = [self._run(images_NHWC[at : at + step]) for at in range(0, len(images_NHWC), step)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([e for _, e in parts])

    def _run(self, images_NHWC: Pixels) -> tuple[Matrix, Matrix]:
        probabilities, embedding = self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(images_NHWC)})
        return probabilities, embedding.reshape(len(embedding), -1)


def measure(images_NHWC: Pixels, scorer: Scorer) -> Samples:
    """All that the monitor knows of these images (N >= 1)."""
    probabilities, embedding = scorer.score(images_NHWC)
    names = property_names(images_NHWC.shape[3])
    return Samples(properties(images_NHWC), names, embedding, probabilities)
