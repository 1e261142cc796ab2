"""Corruptions of uint8 images, severities 1 to 5, seeded: what an image loses between the factory and the field.

Gaussian noise and defocus follow ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), low light follows
ImageNet-3DCC's `low_light` (Kar et al. 2022, arXiv:2203.01441): gamma, less light, photon and read
noise. Radii are ImageNet-C's for 224 pixels, scaled to the image's shorter side.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from visionloop.data.cameras import disk

Images = NDArray[np.uint8]

NOISE_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)
"""Standard deviation, 1.0 = white (ImageNet-C `gaussian_noise`)."""
DEFOCUS_RADIUS = (3.0, 4.0, 6.0, 8.0, 10.0)
"""Pixels of 224 (ImageNet-C `defocus_blur`)."""
LIGHT = (0.60, 0.50, 0.40, 0.30, 0.20)
"""Brightness of the brightest pixel (3DCC `low_light`)."""
LIGHT_GAMMA = 2.0
PHOTONS = (600.0, 250.0, 120.0, 50.0, 30.0)
"""Photons that white stands for: fewer, more noise (3DCC `poisson_gaussian_noise`, as the next line)."""
READ_NOISE = 0.1
"""Share of NOISE_SIGMA that comes on top."""
CHUNK = 1024


def corrupt(images_NHWC: Images, kind: str, severity: int, *, seed: int) -> Images:
    """The corrupted copy; the same seed gives the same bytes. `none` returns the images themselves.

    Raises KeyError for an unknown kind; severities are 1 to 5.
    """
    if kind == "none" or not len(images_NHWC):
        return images_NHWC
    assert 1 <= severity <= 5, severity
    change, out = KINDS[kind], np.empty_like(images_NHWC)
    random = np.random.default_rng([seed, severity, *kind.encode()])
    for start in range(0, len(images_NHWC), CHUNK):
        unit = images_NHWC[start : start + CHUNK].astype(np.float32) / 255.0
        changed = change(unit, severity - 1, random)
        out[start : start + CHUNK] = np.rint(changed.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return out


def gaussian_noise(images: NDArray[np.float32], level: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Independent noise on each channel of each pixel."""
    noise = random.standard_normal(images.shape, dtype=np.float32)
    changed: NDArray[np.float32] = np.add(images, noise * np.float32(NOISE_SIGMA[level]), dtype=np.float32)
    return changed


def defocus(images: NDArray[np.float32], level: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Convolution with a disk; the border is repeated."""
    kernel = torch.from_numpy(disk(DEFOCUS_RADIUS[level] * min(images.shape[1:3]) / 224.0))
    channels, half = images.shape[3], len(kernel) // 2
    padded = F.pad(torch.from_numpy(images).permute(0, 3, 1, 2), (half,) * 4, mode="replicate")
    blurred = F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)
    changed: NDArray[np.float32] = blurred.permute(0, 2, 3, 1).numpy()
    return changed


def low_light(images: NDArray[np.float32], level: int, random: np.random.Generator) -> NDArray[np.float32]:
    """The image's range stretched to [0, LIGHT] by gamma 2, then the noise of few photons and of the sensor."""
    low = images.min(axis=(1, 2, 3), keepdims=True)
    reach = np.maximum(images.max(axis=(1, 2, 3), keepdims=True) - low, np.float32(1 / 255))
    dark = ((images - low) / reach) ** LIGHT_GAMMA * LIGHT[level]
    counted = (random.poisson(dark * PHOTONS[level]) / PHOTONS[level]).clip(0.0, 1.0).astype(np.float32)
    noise = random.standard_normal(images.shape, dtype=np.float32)
    changed: NDArray[np.float32] = np.add(
        counted, noise * np.float32(READ_NOISE * NOISE_SIGMA[level]), dtype=np.float32
    )
    return changed


Change = Callable[[NDArray[np.float32], int, np.random.Generator], NDArray[np.float32]]
KINDS: dict[str, Change] = {"gaussian_noise": gaussian_noise, "defocus": defocus, "low_light": low_light}
