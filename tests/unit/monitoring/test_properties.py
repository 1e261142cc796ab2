"""Image properties against values computed by hand."""

import numpy as np
import pytest

from tests.unit.monitoring.world import change_camera, make_images
from visionloop.monitoring.properties import properties, property_names


def measured(image: np.ndarray) -> dict[str, float]:
    values = properties(image[None])[0]
    return dict(zip(property_names(image.shape[2]), values.tolist(), strict=True))


def test_a_flat_image_has_light_and_nothing_else() -> None:
    found = measured(np.full((8, 8, 1), 100, np.uint8))
    assert found == {
        "brightness": 100.0,
        "contrast": 0.0,
        "sharpness": 0.0,
        "noise": 0.0,
        "entropy": 0.0,
        "dark_share": 0.0,
        "bright_share": 0.0,
    }


def test_half_black_half_white() -> None:
    image = np.zeros((8, 8, 1), np.uint8)
    image[4:] = 255
    found = measured(image)
    assert found["brightness"] == pytest.approx(127.5)
    assert found["contrast"] == pytest.approx(127.5)
    assert found["entropy"] == pytest.approx(1.0)
    assert (found["dark_share"], found["bright_share"]) == (0.5, 0.5)
    # The Laplacian of the inner 6 x 6 pixels is +255 in one row, -255 in the next, 0 in the other four.
    assert found["sharpness"] == pytest.approx(255**2 * 2 / 6)
    # The second difference across is 0 everywhere, so a straight edge is no noise.
    assert found["noise"] == 0.0


@pytest.mark.parametrize(("value", "dark", "bright"), [(31, 1, 0), (32, 0, 0), (223, 0, 0), (224, 0, 1)])
def test_dark_and_bright_begin_at_their_levels(value: int, dark: int, bright: int) -> None:
    found = measured(np.full((8, 8, 1), value, np.uint8))
    assert (found["dark_share"], found["bright_share"]) == (dark, bright)


def test_noise_is_the_standard_deviation_of_gaussian_noise() -> None:
    image = np.random.default_rng(0).normal(128, 8, (200, 200, 1)).round().astype(np.uint8)
    assert measured(image)["noise"] == pytest.approx(8.0, rel=0.05)


def test_colour_of_pure_red_and_of_grey() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    found = measured(red)
    assert found["brightness"] == pytest.approx(0.299 * 200, rel=1e-4)
    assert found["saturation"] == 1.0
    assert found["warmth"] == 200.0
    # No spread; the means of R - G and of (R + G) / 2 - B are 200 and 100.
    assert found["colourfulness"] == pytest.approx(0.3 * np.hypot(200, 100), rel=1e-5)
    grey = measured(np.full((8, 8, 3), 90, np.uint8))
    assert (grey["saturation"], grey["warmth"], grey["colourfulness"]) == (0.0, 0.0, 0.0)


def test_batches_give_the_same_as_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = make_images(9, seed=1)
    single = np.concatenate([properties(images[at : at + 1]) for at in range(len(images))])
    monkeypatch.setattr("visionloop.monitoring.properties.WORKING_BYTES", 4 * 28 * 28 * 4)
    np.testing.assert_allclose(properties(images), single, rtol=1e-5)
    assert properties(images[:0]).shape == (0, 7)


def test_a_changed_camera_moves_light_and_focus() -> None:
    images, _ = make_images(50, seed=2)
    names = property_names(1)
    before, after = properties(images).mean(0), properties(change_camera(images)).mean(0)
    for name in ("brightness", "contrast", "sharpness"):
        assert after[names.index(name)] < 0.7 * before[names.index(name)]
