"""The changed camera: optics and noise as the formulas say, the same for a seed, in grey and in colour."""

import numpy as np
import pytest

from visionloop.data.cameras import FULL_WELL, changed_camera, disk


def flat(value: int, count: int = 4, side: int = 64) -> np.ndarray:
    return np.full((count, side, side), value, np.uint8)


def test_light_and_noise_are_those_of_the_sensor_model() -> None:
    taken = changed_camera(flat(200), seed=1, radius_px=0, light=0.5, read_noise=10.0).astype(float)
    assert taken.mean() == pytest.approx(100, abs=0.3)
    electrons = 100 / 255 * FULL_WELL
    expected = np.sqrt(electrons + 10.0**2) * 255 / FULL_WELL
    assert taken.std() == pytest.approx(np.sqrt(expected**2 + 1 / 12), rel=0.03)


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.3])
def test_the_disk_is_one_in_sum_and_round(radius: float) -> None:
    kernel = disk(radius)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.allclose(kernel, kernel.T) and np.allclose(kernel, kernel[::-1, ::-1])
    assert kernel.max() == pytest.approx(1 / (np.pi * radius**2), rel=0.05)


def test_less_than_a_pixel_blurs_too() -> None:
    assert 0.55 < disk(0.5).max() < 0.65 and 0.85 < disk(0.1).max() < 0.95


def test_defocus_spreads_a_point_over_the_disk_and_keeps_its_light() -> None:
    image = np.zeros((1, 21, 21), np.uint8)
    image[0, 10, 10] = 255
    taken = changed_camera(image, seed=0, radius_px=2.0, light=1.0, read_noise=0.0)[0].astype(float)
    assert taken.sum() == pytest.approx(255, rel=0.15)
    rows, columns = np.nonzero(taken)
    assert np.hypot(rows - 10, columns - 10).max() < 2.0 + 0.75
    assert changed_camera(image, seed=0, radius_px=0.0, light=1.0, read_noise=0.0)[0, 10, 10] > 240


def test_the_same_seed_is_the_same_camera() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 9, 9), np.uint8)
    assert np.array_equal(changed_camera(images, seed=5), changed_camera(images, seed=5))
    assert not np.array_equal(changed_camera(images, seed=5), changed_camera(images, seed=6))
    assert np.array_equal(changed_camera(images, seed=5)[:2048], changed_camera(images[:2048], seed=5))


def test_colour_and_empty() -> None:
    colour = np.zeros((2, 9, 9, 3), np.uint8)
    colour[..., 1] = 200
    taken = changed_camera(colour, seed=0, read_noise=0.0)
    assert taken.shape == colour.shape and taken[..., 0].max() == 0 and taken[..., 1].min() > 50
    assert changed_camera(colour[:0], seed=0).shape == (0, 9, 9, 3)


@pytest.mark.parametrize("options", [{"light": 0.0}, {"light": 1.1}, {"radius_px": -1.0}, {"read_noise": -1.0}])
def test_impossible_cameras(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected light"):
        changed_camera(flat(1), seed=0, **options)
    with pytest.raises(ValueError, match="expected uint8"):
        changed_camera(flat(1).astype(float), seed=0)
