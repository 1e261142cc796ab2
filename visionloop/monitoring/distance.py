"""How far apart two samples of one column are, and how far they may be by chance. Pure numpy.

A distance counts as drift from a threshold on that is the larger of two: what chance alone reaches with probability
`significance` (so that small windows do not alarm), and `MIN_DISTANCE` (so that large windows do not alarm on
differences that are real but too small to matter).
"""

import numpy as np
from numpy.typing import NDArray

MIN_DISTANCE = 0.1
"""Smallest distance (0 to 1) that matters: a tenth of the samples would have to move."""


def ks_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Kolmogorov and Smirnov's statistic: the largest gap between the two cumulative distributions, 0 to 1."""
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    gap = np.searchsorted(first, both, "right") / len(first) - np.searchsorted(second, both, "right") / len(second)
    return float(np.abs(gap).max())


def ks_threshold(first: int, second: int, significance: float) -> float:
    """Distance that two samples of these sizes reach by chance with probability `significance`, at least MIN_DISTANCE.

    Smirnov's asymptotic bound sqrt(-ln(a / 2) / 2 * (n + m) / (n m)), conservative where values repeat.
    """
    chance = np.sqrt(-np.log(significance / 2.0) / 2.0 / _effective(first, second))
    return float(max(MIN_DISTANCE, chance))


def class_distance(first: NDArray[np.integer], second: NDArray[np.integer], classes: int) -> float:
    """Total variation: the share of samples that would have to change class to make the two class mixes equal."""
    shares = [np.bincount(part, minlength=classes) / len(part) for part in (first, second)]
    return float(0.5 * np.abs(shares[0] - shares[1]).sum())


def class_threshold(
    first: NDArray[np.integer], second: NDArray[np.integer], classes: int, significance: float
) -> float:
    """Total variation that chance reaches with at most probability `significance`, at least MIN_DISTANCE.

    Its mean is at most 0.5 sum sqrt(p (1 - p) / n) by Jensen, and McDiarmid's inequality bounds what lies above it by
    sqrt(ln(1 / a) / (2 n)), with n the effective size and p the pooled class shares.
    """
    size = _effective(len(first), len(second))
    share = np.bincount(np.concatenate([first, second]), minlength=classes) / (len(first) + len(second))
    mean = 0.5 * np.sqrt(share * (1.0 - share) / size).sum()
    return float(max(MIN_DISTANCE, mean + np.sqrt(-np.log(significance) / (2.0 * size))))


def _effective(first: int, second: int) -> float:
    return first * second / (first + second)
