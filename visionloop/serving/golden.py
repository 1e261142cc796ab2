"""Golden samples: images of which a model's answers were recorded offline, when it was packaged."""

import io
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import IntegrityError

TIE = 1e-3
"""Two classes nearer than this are one answer: servers on other hardware round otherwise."""


SUM_TOLERANCE = 0.01


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


def extremes(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Images that cameras do send and test sets lack, [4,H,W,C]: black, white, noise, a half-black half-white one."""
    images = np.zeros((4, height, width, channels), np.uint8)
    images[1] = 255
    images[2] = np.random.default_rng(0).integers(0, 256, images[2].shape, np.uint8)
    images[3, : height // 2] = 255
    return images


def unsound(probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows [N,K] are no probabilities: not finite, outside 0 to 1, or not adding up to 1 within 1 %."""
    with np.errstate(invalid="ignore"):
        inside = (probabilities >= 0).all(axis=1) & (probabilities <= 1).all(axis=1)
        adds_up = np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE
    wrong: NDArray[np.bool_] = ~(np.isfinite(probabilities).all(axis=1) & inside & adds_up)
    return wrong


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
