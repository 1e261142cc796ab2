"""Bounds that hold at every look: values by hand, coverage over whole paths, both sides of each decision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.serving.sequential import Rate, compare

ALPHA = 0.05
counts = st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_the_upper_bound_of_one_clean_trial_is_that_of_the_formula() -> None:
    """The priors' mean chance of a clean trial is (50/50.5 + 1/2) / 2; p is excluded where 1 - p is 20 times less."""
    by_hand = 1 - (50 / 50.5 + 0.5) / 2 * ALPHA
    assert Rate(0, 1).bounds(ALPHA) == (0.0, pytest.approx(by_hand, abs=1e-12))
    assert Rate(1, 1).bounds(ALPHA) == (pytest.approx((0.5 / 50.5 + 0.5) / 2 * ALPHA, abs=1e-12), 1.0)


@given(counts, st.floats(1e-6, 0.5))
def test_the_rate_that_was_seen_lies_between_its_bounds(found: tuple[int, int], alpha: float) -> None:
    events, trials = found
    low, high = Rate(events, trials).bounds(alpha)
    assert 0.0 <= low <= high <= 1.0
    if trials:
        assert low <= events / trials <= high
    wider = Rate(events, trials).bounds(alpha / 10)
    assert wider[0] <= low
    assert wider[1] >= high


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_few_paths_ever_leave_the_bounds(rate: float) -> None:
    """500 paths of 2,000 trials, looked at 80 times: at most 5 % may ever exclude the truth; 9 % is 4 deviations up."""
    draws = np.random.default_rng(7).random((500, 2000)) < rate
    looks = np.unique(np.geomspace(5, 2000, 80).astype(int))
    seen = draws.cumsum(axis=1)[:, looks - 1]
    left = 0
    for path in seen:
        left += any(Rate(int(k), int(n)).excludes(rate, ALPHA) for k, n in zip(path, looks, strict=True))
    assert left / 500 < 0.09


def test_a_fixed_sample_test_would_have_raised_more_alarms() -> None:
    """The same looks with the usual 95 % interval: what this is for."""
    draws = np.random.default_rng(7).random((500, 2000)) < 0.05
    looks = np.unique(np.geomspace(50, 2000, 80).astype(int))
    share = draws.cumsum(axis=1)[:, looks - 1] / looks
    outside = np.abs(share - 0.05) > 1.96 * np.sqrt(0.05 * 0.95 / looks)
    assert outside.any(axis=1).mean() > 0.3


@pytest.mark.parametrize(
    ("canary", "stable", "finding"),
    [
        (Rate(0, 400), None, "open"),
        (Rate(0, 600), None, "fine"),
        (Rate(0, 600), Rate(0, 600), "fine"),
        (Rate(1, 20), None, "open"),
        (Rate(4, 4), None, "worse"),
        (Rate(5, 10), None, "worse"),
        (Rate(5, 10), Rate(5, 10), "open"),
        (Rate(500, 1000), Rate(500, 1000), "open"),
        (Rate(500, 1000), Rate(300, 1000), "worse"),
        (Rate(0, 0), None, "open"),
        (Rate(0, 300), Rate(100, 300), "fine"),
    ],
)
def test_worse_fine_or_not_known_yet(canary: Rate, stable: Rate | None, finding: str) -> None:
    assert compare(canary, stable, margin=0.01, false_alarm=0.05, miss=0.05) == finding


@given(counts, counts | st.none(), st.floats(0, 0.2))
def test_more_events_never_look_better(canary: tuple[int, int], stable: tuple[int, int] | None, margin: float) -> None:
    order = ["fine", "open", "worse"]
    other = Rate(*stable) if stable else None
    events, trials = canary
    found = compare(Rate(events, trials), other, margin=margin, false_alarm=0.05, miss=0.05)
    if events < trials:
        more = compare(Rate(events + 1, trials), other, margin=margin, false_alarm=0.05, miss=0.05)
        assert order.index(more) >= order.index(found)
