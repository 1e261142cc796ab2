"""Distances against scipy and by hand; thresholds on both sides of chance."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from visionloop.monitoring.distance import MIN_DISTANCE, class_distance, class_threshold, ks_distance, ks_threshold


@pytest.mark.parametrize("shift", [0.0, 0.3, 5.0])
def test_ks_is_scipys_statistic(shift: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=500), rng.normal(shift, size=300)
    assert ks_distance(first, second) == pytest.approx(ks_2samp(first, second).statistic)


def test_ks_counts_ties_once() -> None:
    assert ks_distance(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])) == pytest.approx(0.5)
    assert ks_distance(np.array([2.0, 2.0]), np.array([2.0])) == 0.0


def test_the_threshold_is_the_distance_at_which_scipy_sees_significance() -> None:
    threshold = ks_threshold(200, 200, 0.01)
    assert threshold == pytest.approx(np.sqrt(-np.log(0.005) / 2 / 100))
    assert threshold > MIN_DISTANCE
    grid = np.arange(200)
    for moved, significant in ((int(200 * threshold) - 1, False), (int(200 * threshold) + 1, True)):
        second = np.concatenate([grid[moved:], np.full(moved, 1_000)])
        distance = ks_distance(grid, second)
        assert (distance >= threshold) is significant
        assert bool(ks_2samp(grid, second, method="asymp").pvalue <= 0.01) is significant


def test_large_samples_need_a_distance_that_matters() -> None:
    assert ks_threshold(100_000, 100_000, 0.01) == MIN_DISTANCE
    same = np.repeat(np.arange(10), 10_000)
    assert class_threshold(same, same, 10, 0.01) == MIN_DISTANCE


def test_class_distance_is_the_share_that_must_move() -> None:
    first, second = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 1, 1])
    assert class_distance(first, second, 3) == pytest.approx(0.375)
    assert class_distance(first, first, 3) == 0.0


def test_chance_rarely_reaches_the_class_threshold() -> None:
    rng = np.random.default_rng(1)
    reached = 0
    for _ in range(200):
        first, second = rng.integers(0, 10, 600), rng.integers(0, 10, 150)
        reached += class_distance(first, second, 10) >= class_threshold(first, second, 10, 0.05)
    assert reached <= 10
    assert class_threshold(first, second, 10, 0.05) > MIN_DISTANCE
