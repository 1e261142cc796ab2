"""What an image looks like in a handful of numbers: light, focus, noise, colour. Vectorised, no model needed.

All are computed on the grey value Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), 0 to 255, unless colour is meant.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Column = NDArray[np.float32]

GREY = (
    "brightness",
    "contrast",
    "sharpness",
    "noise",
    "entropy",
    "dark_share",
    "bright_share",
)
COLOUR = ("saturation", "colourfulness", "warmth")
DARK, BRIGHT = 32, 224
"""Grey values: below the first a pixel is dark, from the second on it is bright."""
WORKING_BYTES = 64 << 20
"""Size of one float32 copy of the images that are measured at once."""


def property_names(channels: int) -> tuple[str, ...]:
    """The columns that `properties` gives for grey (1) or colour (3) images, in order."""
    return GREY + COLOUR if channels == 3 else GREY


def rows_at_once(height: int, width: int, channels: int) -> int:
    """How many images to measure at once so that memory stays bounded."""
    return int(np.clip(WORKING_BYTES // (height * width * channels * 4), 1, 1024))


def properties(images_NHWC: Pixels) -> NDArray[np.float32]:
    """Measure uint8 NHWC images (C = 1 or 3): float32 [N, P], the columns as in `property_names`.

    brightness: mean of Y. contrast: standard deviation of Y. sharpness: variance of the 4-neighbour Laplacian of Y
    (Pech-Pacheco 2000). noise: Immerkaer's estimate of the noise's standard deviation (1996), which edges raise too.
    entropy: of the 256-bin histogram of Y, bits. dark_share, bright_share: shares of pixels with Y < 32, Y >= 224.
    saturation: mean of (max - min) / max over the channels. colourfulness: Hasler and Suesstrunk (2003), M3.
    warmth: mean of R - B.
    """
    count, height, width, channels = images_NHWC.shape
    step = rows_at_once(height, width, channels)
    parts = [_measure(images_NHWC[at : at + step]) for at in range(0, count, step)]
    return np.concatenate(parts) if parts else np.empty((0, len(property_names(channels))), np.float32)


def _measure(images_NHWC: Pixels) -> NDArray[np.float32]:
    grey = _grey(images_NHWC)
    levels = np.rint(grey).astype(np.uint8)
    columns = [
        grey.mean((1, 2)),
        grey.std((1, 2)),
        _laplacian(grey).var((1, 2)),
        _noise(grey),
        _entropy(levels),
        (levels < DARK).mean((1, 2)),
        (levels >= BRIGHT).mean((1, 2)),
    ]
    if images_NHWC.shape[3] == 3:
        columns += _colour(images_NHWC)
    return np.stack(columns, axis=1).astype(np.float32)


def _grey(images_NHWC: Pixels) -> NDArray[np.float32]:
    if images_NHWC.shape[3] == 1:
        return images_NHWC[..., 0].astype(np.float32)
    return images_NHWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _laplacian(grey_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    inner = grey_NHW[:, 1:-1, 1:-1]
    around = grey_NHW[:, :-2, 1:-1] + grey_NHW[:, 2:, 1:-1] + grey_NHW[:, 1:-1, :-2] + grey_NHW[:, 1:-1, 2:]
    laplacian: NDArray[np.float32] = around - 4.0 * inner
    return laplacian


def _noise(grey_NHW: NDArray[np.float32]) -> Column:
    # The mask [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] is the second difference along one axis, then along the other.
    across = grey_NHW[:, :, :-2] - 2.0 * grey_NHW[:, :, 1:-1] + grey_NHW[:, :, 2:]
    both = across[:, :-2] - 2.0 * across[:, 1:-1] + across[:, 2:]
    sigma: Column = np.abs(both).mean((1, 2)) * np.float32(np.sqrt(np.pi / 2.0) / 6.0)
    return sigma


def _entropy(levels_NHW: Pixels) -> Column:
    counts = np.stack([np.bincount(levels.ravel(), minlength=256) for levels in levels_NHW])
    share = counts / counts.sum(1, keepdims=True)
    bits: Column = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)
    return bits


def _colour(images_NHWC: Pixels) -> list[Column]:
    # Planes in one piece each: reductions over a last axis of three are ten times slower.
    red, green, blue = (np.ascontiguousarray(images_NHWC[..., at], np.float32) for at in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = ((high - low) / np.maximum(high, 1.0)).mean((1, 2))
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std((1, 2)), yellow_blue.std((1, 2)))
    offset = np.hypot(red_green.mean((1, 2)), yellow_blue.mean((1, 2)))
    return [saturation, spread + 0.3 * offset, (red - blue).mean((1, 2))]
