"""Metrics against values by hand and scikit-learn's, intervals against formulas, naive resampling and coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from visionloop.evaluation.metrics import METRICS, Metric, Z, compare, confusion, measure, wilson

TARGETS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
ANSWERS = np.array([0, 0, 0, 1, 1, 1, 0, 2, 0, 0])
# Class 0: 3 of 4 found, 6 answered; class 1: 2 of 3, 3 answered; class 2: 1 of 3, 1 answered.
BY_HAND = {"accuracy": 0.6, "f1_macro": (6 / 10 + 4 / 6 + 2 / 4) / 3, "worst_class_recall": 1 / 3}

answered = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def columns(rows: list[tuple[int, int, int]]) -> list[np.ndarray]:
    return list(np.array(rows, np.int64).T)


@pytest.mark.parametrize("metric", METRICS)
def test_values_by_hand(metric: Metric) -> None:
    figure = measure(metric, TARGETS, ANSWERS, seed=0)
    assert figure.value == pytest.approx(BY_HAND[metric])
    assert figure.n == 10
    assert figure.low < figure.value < figure.high


@settings(max_examples=50)
@given(answered)
def test_values_are_those_of_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    targets, answers, _ = columns(rows)
    f1 = f1_score(targets, answers, average="macro", zero_division=0)
    recalls = recall_score(targets, answers, labels=np.unique(targets), average=None)
    assert measure("f1_macro", targets, answers, seed=0).value == pytest.approx(f1)
    assert measure("worst_class_recall", targets, answers, seed=0).value == pytest.approx(recalls.min())
    assert measure("accuracy", targets, answers, seed=0).value == pytest.approx((targets == answers).mean())


@settings(max_examples=50)
@given(answered, st.sampled_from(sorted(METRICS)))
def test_a_difference_is_one_of_the_figures_and_turns_with_the_models(
    rows: list[tuple[int, int, int]], metric: Metric
) -> None:
    targets, first, second = columns(rows)
    change, back = (compare(metric, targets, *pair, seed=1) for pair in ((first, second), (second, first)))
    expected = measure(metric, targets, first, seed=1).value - measure(metric, targets, second, seed=1).value
    assert change.value == pytest.approx(expected) and back.value == pytest.approx(-expected)
    assert change.low <= change.value <= change.high
    assert change.low >= -1.0 and change.high <= 1.0


@settings(max_examples=50)
@given(answered, st.sampled_from(sorted(METRICS)))
def test_figures_are_shares_inside_their_interval(rows: list[tuple[int, int, int]], metric: Metric) -> None:
    targets, answers, _ = columns(rows)
    figure = measure(metric, targets, answers, seed=1)
    assert 0.0 <= figure.low <= figure.value <= figure.high <= 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_equal_models_differ_by_nothing(metric: Metric) -> None:
    change = compare(metric, TARGETS, ANSWERS, ANSWERS, seed=3)
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


# Brown, Cai and DasGupta's formula worked out by hand; 0 and all of n must stay inside [0, 1].
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 0.49016, 0.94332), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (1, 2, 0.09453, 0.90547)],
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-5)


def test_accuracy_has_wilsons_interval() -> None:
    figure = measure("accuracy", TARGETS, ANSWERS, seed=0)
    assert (figure.low, figure.high) == wilson(6, 10)


def noisy(n: int, right: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets of 5 classes, and answers that are right with this probability."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 5, n)
    return targets, np.where(random.random(n) < right, targets, random.integers(0, 5, n))


def test_a_paired_difference_has_mcnemars_width() -> None:
    """d +- 1.96 sqrt(b + c - (b - c)^2 / n) / n, where b and c count the samples that only one model has right."""
    targets, champion = noisy(4000, 0.7, 1)
    challenger = champion.copy()
    challenger[:300] = targets[:300]
    b, c = ((x == targets) & (y != targets) for x, y in ((challenger, champion), (champion, challenger)))
    d = (b.sum() - c.sum()) / 4000
    reach = Z * np.sqrt(b.sum() + c.sum() - (b.sum() - c.sum()) ** 2 / 4000) / 4000
    change = compare("accuracy", targets, challenger, champion, seed=5)
    assert change.value == pytest.approx(d)
    assert (change.low, change.high) == pytest.approx((d - reach, d + reach), abs=reach * 0.1)
    alone = measure("accuracy", targets, challenger, seed=5)
    assert change.high - change.low < 0.6 * (alone.high - alone.low)


@pytest.mark.parametrize("metric", ["f1_macro", "worst_class_recall"])
def test_the_multinomial_bootstrap_is_the_resampling_of_samples(metric: Metric) -> None:
    targets, answers = noisy(600, 0.6, 2)
    random = np.random.default_rng(0)
    naive = []
    for _ in range(1000):
        index = random.integers(0, 600, 600)
        cells = confusion(targets[index], answers[index], 5)
        hits, actual = cells.diagonal(), cells.sum(1)
        f1 = 2 * hits / (actual + cells.sum(0))
        naive.append(f1.mean() if metric == "f1_macro" else (hits / actual).min())
    low, high = np.percentile(naive, [2.5, 97.5])
    figure = measure(metric, targets, answers, seed=9)
    assert (figure.low, figure.high) == pytest.approx((low, max(high, figure.value)), abs=(high - low) * 0.15)


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    """Both right 60 %, only the challenger 15 %, only the champion 10 %: the truth is 5 points."""
    held = 0
    for seed in range(120):
        kind = np.random.default_rng(seed).choice(4, 300, p=[0.60, 0.15, 0.10, 0.15])
        targets = np.zeros(300, np.int64)
        challenger, champion = (np.isin(kind, wrong).astype(np.int64) for wrong in ([2, 3], [1, 3]))
        change = compare("accuracy", targets, challenger, champion, seed=seed)
        held += change.low <= 0.05 <= change.high
    assert 107 <= held <= 119


@pytest.mark.parametrize("metric", METRICS)
def test_the_seed_decides(metric: Metric) -> None:
    targets, champion = noisy(200, 0.7, 1)
    _, challenger = noisy(200, 0.8, 4)
    first, again, other = (compare(metric, targets, challenger, champion, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_more_samples_narrow_the_interval() -> None:
    few, many = (measure("f1_macro", *noisy(n, 0.7, 3), seed=0) for n in (100, 10_000))
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 10, rel=0.3)


def test_a_class_that_nobody_has_counts_for_nothing() -> None:
    """Class 1 is neither target nor answer."""
    targets, answers = np.array([0, 0, 2, 2]), np.array([0, 0, 2, 0])
    assert measure("f1_macro", targets, answers, seed=0).value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert measure("worst_class_recall", targets, answers, seed=0).value == 0.5


def test_confusion_has_targets_in_rows() -> None:
    assert confusion(TARGETS, ANSWERS, 4).tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
