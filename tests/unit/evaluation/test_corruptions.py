"""Corruptions: seeded, worse with each severity, and as strong as the tables of their papers say."""

import numpy as np
import pytest

from visionloop.evaluation.corruptions import (
    CHUNK,
    DEFOCUS_RADIUS,
    KINDS,
    LIGHT,
    NOISE_SIGMA,
    PHOTONS,
    READ_NOISE,
    corrupt,
    disk,
)

ALL = sorted(KINDS)
SEVERITIES = range(1, 6)


def textured(count: int, side: int = 28, channels: int = 1) -> np.ndarray:
    """Bright bars of random width on a dark ground."""
    random = np.random.default_rng(4)
    rows, columns = np.mgrid[:side, :side]
    images = np.empty((count, side, side, channels), np.uint8)
    for image in images:
        angle, width = random.uniform(0, np.pi), random.uniform(3, 8) * side / 28
        bars = (np.sin(angle) * rows + np.cos(angle) * columns) % (2 * width) < width
        image[...] = np.where(bars, 220, 30)[..., None]
    return images


def grey(value: int, count: int = 40, side: int = 28) -> np.ndarray:
    return np.full((count, side, side, 1), value, np.uint8)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_input(kind: str, channels: int) -> None:
    images = textured(3, channels=channels)
    before = images.copy()
    first, again = (corrupt(images, kind, 3, seed=5) for _ in range(2))
    assert first.shape == images.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and np.array_equal(images, before)
    assert not np.array_equal(first, images)


@pytest.mark.parametrize("kind", ["gaussian_noise", "low_light"])
def test_another_seed_severity_or_image_gets_other_noise(kind: str) -> None:
    images = np.repeat(textured(1), 2, axis=0)
    noisy = corrupt(images, kind, 2, seed=1)
    assert not np.array_equal(noisy, corrupt(images, kind, 2, seed=2))
    assert not np.array_equal(noisy[0], noisy[1])


@pytest.mark.parametrize("kind", ALL)
def test_each_severity_is_farther_from_the_original(kind: str) -> None:
    images = textured(20)
    errors = [
        np.sqrt(np.square(corrupt(images, kind, severity, seed=0).astype(float) - images).mean())
        for severity in SEVERITIES
    ]
    assert errors == sorted(errors) and errors[0] > 5
    assert np.diff(errors).min() > 0.5


def test_none_is_no_corruption_and_no_copy() -> None:
    images = textured(2)
    assert corrupt(images, "none", 3, seed=0) is images


@pytest.mark.parametrize("kind", ALL)
def test_no_images(kind: str) -> None:
    assert corrupt(textured(0), kind, 3, seed=0).shape == (0, 28, 28, 1)


def test_an_unknown_kind_or_severity_is_refused() -> None:
    with pytest.raises(KeyError, match="fog"):
        corrupt(textured(1), "fog", 1, seed=0)
    for severity in (0, 6):
        with pytest.raises(AssertionError):
            corrupt(textured(1), "defocus", severity, seed=0)


@pytest.mark.parametrize("kind", ALL)
def test_images_beyond_a_chunk_are_corrupted_too(kind: str) -> None:
    images = grey(128, CHUNK + 3)
    images[:, :14] = 40
    changed = corrupt(images, kind, 3, seed=0)
    assert all(not np.array_equal(changed[at], images[at]) for at in (0, CHUNK - 1, CHUNK, CHUNK + 2))


@pytest.mark.parametrize("severity", [1, 2])
def test_noise_has_the_papers_strength(severity: int) -> None:
    """Of mid-grey, where hardly any value is clipped."""
    changed = corrupt(grey(128), "gaussian_noise", severity, seed=0) / 255.0
    assert changed.std() == pytest.approx(NOISE_SIGMA[severity - 1], rel=0.02)
    assert changed.mean() == pytest.approx(128 / 255, abs=0.002)


def test_noise_differs_between_channels() -> None:
    changed = corrupt(np.full((1, 28, 28, 3), 128, np.uint8), "gaussian_noise", 3, seed=0)
    assert abs(np.corrcoef(changed[..., 0].ravel(), changed[..., 1].ravel())[0, 1]) < 0.15


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_moves_light_and_makes_none(severity: int) -> None:
    assert np.array_equal(corrupt(grey(77), "defocus", severity, seed=0), grey(77))
    point = np.zeros((1, 57, 57, 1), np.uint8)
    point[0, 20:37, 20:37] = 255
    blurred = corrupt(point, "defocus", severity, seed=0)
    assert blurred.mean() == pytest.approx(point.mean(), rel=0.01)
    assert np.array_equal(blurred[0, :, :, 0], blurred[0, ::-1, :, 0]) and blurred[0, 28, 28, 0] == 255


def test_defocus_scales_with_the_image() -> None:
    """At 224 pixels the radius is the table's, in pixels; at half the side it is half of it."""
    for side in (224, 112):
        dot = np.zeros((1, side, side, 1), np.uint8)
        dot[0, side // 2, side // 2] = 255
        reached = corrupt(dot, "defocus", 1, seed=0)[0, side // 2, :, 0].nonzero()[0]
        assert (len(reached) - 1) / 2 == pytest.approx(DEFOCUS_RADIUS[0] * side / 224, abs=0.6)


@pytest.mark.parametrize("radius_px", [0.1, 0.4, 1.0, 2.3, 10.0])
def test_a_disk_is_round_and_weighs_one(radius_px: float) -> None:
    kernel = disk(radius_px)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert np.array_equal(kernel, kernel.T) and np.array_equal(kernel, kernel[::-1])
    covered = (kernel / kernel.max()).sum()
    if radius_px >= 1:
        assert covered == pytest.approx(np.pi * radius_px**2, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_low_light_is_as_dark_as_the_table_says(severity: int) -> None:
    """Half black, half white: white becomes LIGHT, with the noise of so many photons and of the sensor."""
    images = grey(0, 200)
    images[:, :, 14:] = 255
    changed = corrupt(images, "low_light", severity, seed=0) / 255.0
    light, white = LIGHT[severity - 1], changed[:, :, 14:]
    assert white.mean() == pytest.approx(light, abs=0.01)
    expected = np.hypot(np.sqrt(light / PHOTONS[severity - 1]), READ_NOISE * NOISE_SIGMA[severity - 1])
    assert white.std() == pytest.approx(expected, rel=0.05)
    assert changed[:, :, :14].mean() < 0.03


def test_low_light_of_a_flat_image_is_black() -> None:
    """No contrast to stretch: nothing is divided by zero."""
    assert corrupt(grey(200), "low_light", 1, seed=0).mean() < 10
