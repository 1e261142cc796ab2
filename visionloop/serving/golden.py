"""Golden samples: images of which a model's answers were recorded offline, when it was packaged."""

import io
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import IntegrityError

TIE = 1e-3
"""Two classes nearer than this are one answer: servers on other hardware round otherwise."""


@dataclass(frozen=True)
class Golden:
    """`golden.npz` of a candidate."""

    images: NDArray[np.uint8]
    """[N,H,W,C]"""
    probabilities: NDArray[np.float32]
    """[N,K]"""

    def disagrees(self, index: int, probabilities: NDArray[np.float32]) -> bool:
        """Does the top class of an answer [K] to image `index` differ from the one recorded?"""
        expected = self.probabilities[index]
        return bool(expected.max() - expected[probabilities.argmax()] > TIE)

    def disagreements(self, probabilities: NDArray[np.float32]) -> int:
        """How many of all answers [N,K] do."""
        assert probabilities.shape == self.probabilities.shape, (probabilities.shape, self.probabilities.shape)
        return sum(self.disagrees(index, row) for index, row in enumerate(probabilities))


def read_golden(data: bytes) -> Golden:
    """Raises IntegrityError for bytes that are no golden.npz."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            golden = Golden(arrays["images"], arrays["probabilities"].astype(np.float32, copy=False))
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        raise IntegrityError(f"golden.npz cannot be read: {error}") from None
    if golden.images.ndim != 4 or len(golden.images) != len(golden.probabilities) or not len(golden.images):
        raise IntegrityError(f"golden.npz holds {len(golden.images)} images and {len(golden.probabilities)} answers")
    return golden
