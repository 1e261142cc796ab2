"""The golden samples: a few real images and what the packaged model says to them, for smoke tests and the canary."""

import io

import numpy as np
from numpy.typing import NDArray

COUNT = 64


def choose(targets: NDArray[np.int64], count: int = COUNT) -> NDArray[np.int64]:
    """Row numbers, ascending: the classes in turn, so that each is there while there is room."""
    order = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[order], targets[order])  # where each sample's class begins
    turn = np.empty(len(targets), np.int64)
    turn[order] = np.arange(len(targets)) - starts  # 0 for the first of its class, 1 for the second
    return np.sort(np.lexsort((targets, turn))[:count])


def pack(images: NDArray[np.uint8], probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> bytes:
    """`golden.npz`: `images` [N, H, W, C], `probabilities` [N, K], `targets` [N]; same arrays, same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, probabilities=probabilities, targets=targets)
    return buffer.getvalue()
