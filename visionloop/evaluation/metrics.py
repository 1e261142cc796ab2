"""Metrics from counts, with intervals: Wilson for accuracy, paired bootstrap for everything else and for differences.

A resample of N samples with replacement only changes how often each kind of outcome (target, prediction of one model,
prediction of the other) occurs, and those counts are multinomial: the bootstrap draws them directly, all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visionloop.records import Interval

Metric = Literal["accuracy", "f1_macro", "worst_class_recall"]
Counts = NDArray[np.float64]

Z = 1.959963984540054
"""Two-sided 95 %."""
RESAMPLES = 2_000


@dataclass(frozen=True)
class Tally:
    """Per class, for R resamples at once, each [R, K]: how many are of it, answered it, and both."""

    actual: Counts
    answered: Counts
    hits: Counts


def accuracy(tally: Tally) -> Counts:
    """Share of right answers [R]."""
    return np.asarray(tally.hits.sum(1) / tally.actual.sum(1))


def f1_macro(tally: Tally) -> Counts:
    """Mean F1 over the classes that occur as target or answer [R] (scikit-learn's `f1_score(average="macro")`)."""
    present = (tally.actual + tally.answered) > 0
    f1 = np.divide(2 * tally.hits, tally.actual + tally.answered, out=np.zeros_like(tally.hits), where=present)
    return np.asarray(f1.sum(1) / present.sum(1))


def worst_class_recall(tally: Tally) -> Counts:
    """Smallest recall over the classes that occur [R]."""
    present = tally.actual > 0
    recall = np.divide(tally.hits, tally.actual, out=np.ones_like(tally.hits), where=present)
    return np.asarray(recall.min(1))


METRICS: dict[str, Callable[[Tally], Counts]] = {
    "accuracy": accuracy,
    "f1_macro": f1_macro,
    "worst_class_recall": worst_class_recall,
}


def measure(metric: Metric, targets: NDArray[np.int64], answers: NDArray[np.int64], *, seed: int) -> Interval:
    """One model's figure with its 95 % interval. At least one sample is needed."""
    value = float(METRICS[metric](_tally(_outcomes(targets, answers)))[0])
    if metric == "accuracy":
        low, high = wilson(int((targets == answers).sum()), len(targets))
    else:
        resampled = METRICS[metric](_tally(_outcomes(targets, answers, resamples=RESAMPLES, seed=seed)))
        low, high = _percentiles(resampled, value)
    return Interval(value=value, low=low, high=high, n=len(targets))


def compare(
    metric: Metric,
    targets: NDArray[np.int64],
    challenger: NDArray[np.int64],
    champion: NDArray[np.int64],
    *,
    seed: int,
) -> Interval:
    """Challenger minus champion on the same samples, with its 95 % interval (Efron and Tibshirani 1993, paired)."""
    function = METRICS[metric]
    value = function(_tally(_outcomes(targets, challenger)))[0] - function(_tally(_outcomes(targets, champion)))[0]
    cells = _Cells.of(targets, challenger, champion)
    counts = cells.resampled(RESAMPLES, seed)
    first, second = (_tally_of(cells.targets, answers, counts) for answers in (cells.first, cells.second))
    low, high = _percentiles(function(first) - function(second), float(value))
    return Interval(value=float(value), low=low, high=high, n=len(targets))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for small n)."""
    share, z2 = hits / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and 1 rounding may put the share itself outside by 1e-17.
    return min(share, max(0.0, float(centre - reach))), max(share, min(1.0, float(centre + reach)))


def confusion(targets: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts [K, K]: row = target, column = answer."""
    flat = np.bincount(targets * classes + answers, minlength=classes * classes)
    return flat.reshape(classes, classes)


@dataclass(frozen=True)
class _Cells:
    """The kinds of outcome that occur, and how often each does."""

    targets: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    counts: NDArray[np.int64]

    @staticmethod
    def of(targets: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> "_Cells":
        kinds, counts = np.unique(np.stack([targets, first, second]), axis=1, return_counts=True)
        return _Cells(kinds[0], kinds[1], kinds[2], counts)

    def resampled(self, resamples: int, seed: int) -> Counts:
        n = int(self.counts.sum())
        drawn = np.random.default_rng(seed).multinomial(n, self.counts / n, size=resamples)
        return drawn.astype(np.float64)


@dataclass(frozen=True)
class _Outcomes:
    targets: NDArray[np.int64]
    answers: NDArray[np.int64]
    counts: Counts


def _outcomes(
    targets: NDArray[np.int64], answers: NDArray[np.int64], *, resamples: int = 0, seed: int = 0
) -> _Outcomes:
    cells = _Cells.of(targets, answers, answers)
    counts = cells.resampled(resamples, seed) if resamples else cells.counts[None].astype(np.float64)
    return _Outcomes(cells.targets, cells.first, counts)


def _tally(outcomes: _Outcomes) -> Tally:
    return _tally_of(outcomes.targets, outcomes.answers, outcomes.counts)


def _tally_of(targets: NDArray[np.int64], answers: NDArray[np.int64], counts: Counts) -> Tally:
    classes = np.arange(int(max(targets.max(), answers.max())) + 1)
    is_target = (targets[:, None] == classes).astype(np.float64)
    is_answer = (answers[:, None] == classes).astype(np.float64)
    return Tally(counts @ is_target, counts @ is_answer, counts @ (is_target * is_answer))


def _percentiles(resampled: Counts, value: float) -> tuple[float, float]:
    """2.5 % and 97.5 %; the value itself is always inside (the minimum over classes is biased under resampling)."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return min(float(low), value), max(float(high), value)
