"""A camera that has changed: out of focus and short of light. Real images in, the images that it would have taken out.

The model is the usual one of optics and sensors: a defocused lens spreads each point over a disk (J. Goodman,
Introduction to Fourier Optics, section 6.4, in the limit of geometrical optics); photons arrive as a Poisson process
and the electronics add Gaussian noise (EMVA Standard 1288, linear camera model).
"""

import numpy as np
from numpy.typing import NDArray

from visionloop.data.images import Pixels

FULL_WELL = 2_000
"""Electrons at grey value 255: a small sensor, where photon noise shows."""
CHUNK = 2048


def changed_camera(
    images: Pixels,
    *,
    seed: int,
    radius_px: float = 1.5,
    light: float = 0.4,
    read_noise: float = 12.0,
) -> Pixels:
    """Take uint8 images NHW or NHWC again through the changed camera; same shape, and the same result for a seed.

    `radius_px` is the radius of the disk of confusion (0: in focus), `light` the share of light that is left (0 to 1],
    `read_noise` the electronics' standard deviation in electrons. An image's result depends on its place in `images`.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"expected uint8 NHW or NHWC, found {images.dtype} {images.shape}")
    if not (0.0 < light <= 1.0 and radius_px >= 0.0 and read_noise >= 0.0):
        raise ValueError(f"expected light in (0, 1] and no negative size, found {light}, {radius_px}, {read_noise}")
    kernel = disk(radius_px)
    taken = np.empty_like(images)
    for at in range(0, len(images), CHUNK):
        random = np.random.default_rng((seed, at))
        blurred = _spread(images[at : at + CHUNK].astype(np.float32), kernel)
        taken[at : at + CHUNK] = _sensed(blurred * np.float32(light), random, read_noise)
    return taken


def disk(radius_px: float, *, samples: int = 16) -> NDArray[np.float32]:
    """Point spread of a defocused lens: the mean over a disk of the image as bilinear interpolation has it. Sums to 1.

    Counting the pixels that a disk covers would lose all blur below half a pixel, which small images have.
    """
    if radius_px <= 0.0:
        return np.ones((1, 1), np.float32)
    half = int(np.ceil(radius_px))
    fine = (np.arange(2 * half * samples) + 0.5) / samples - half
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius_px**2).astype(np.float64)
    share = np.maximum(0.0, 1.0 - np.abs(fine - np.arange(-half, half + 1)[:, None]))
    spread = share @ inside @ share.T
    return np.asarray(spread / spread.sum(), np.float32)


def _spread(images: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convolve axes 1 and 2 with a small symmetric kernel; the border is repeated."""
    half = len(kernel) // 2
    if not half:
        return images
    height, width = images.shape[1:3]
    rest = [(0, 0)] * (images.ndim - 3)
    padded = np.pad(images, [(0, 0), (half, half), (half, half), *rest], mode="edge")
    total = np.zeros_like(images)
    for (row, column), weight in np.ndenumerate(kernel):
        if weight:
            total += weight * padded[:, row : row + height, column : column + width]
    return total


def _sensed(grey: NDArray[np.float32], random: np.random.Generator, read_noise: float) -> Pixels:
    """What the sensor makes of light that would give these grey values."""
    electrons = random.poisson(np.maximum(grey, 0.0) * (FULL_WELL / 255.0)) + random.normal(0.0, read_noise, grey.shape)
    return np.clip(np.rint(electrons * (255.0 / FULL_WELL)), 0, 255).astype(np.uint8)
