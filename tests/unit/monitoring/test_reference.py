"""The reference: bounded, every batch in it, classes in their own proportions, the same every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.monitoring.examples import PER_BATCH, kept_images, shown, spread
from visionloop.monitoring.reference import MAX_SAMPLES, choose, fill


@pytest.mark.parametrize(
    ("sizes", "budget", "given_to"),
    [([10, 10], 8, [4, 4]), ([100, 3], 10, [7, 3]), ([2, 3], 10, [2, 3]), ([5, 50, 500], 65, [5, 30, 30]), ([], 5, [])],
)
def test_a_budget_is_filled_like_water(sizes: list[int], budget: int, given_to: list[int]) -> None:
    assert fill(sizes, budget) == given_to


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=20), st.integers(0, 5_000))
def test_the_budget_is_used_up(sizes: list[int], budget: int) -> None:
    parts = fill(sizes, budget)
    assert sum(parts) == min(budget, sum(sizes))
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    if any(part < size for part, size in zip(parts, sizes, strict=True)):
        assert max(parts) - min(part for part, size in zip(parts, sizes, strict=True) if part < size) <= 1


def test_small_batches_are_whole_and_classes_keep_their_shares() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(["a", "b"], [9_000, 1_000]), np.repeat(["a", "b"], [100, 100])])
    batches = np.repeat(["first", "second"], [10_000, 200])
    ids = np.array([f"{value:016x}" for value in rng.permutation(len(labels))])
    rows = choose(labels, batches, ids)
    assert len(rows) == len(set(rows.tolist())) == MAX_SAMPLES
    assert (batches[rows] == "second").sum() == 200
    of_first = labels[rows[batches[rows] == "first"]]
    assert (of_first == "b").mean() == pytest.approx(0.1, abs=0.001)
    assert rows.tolist() == choose(labels, batches, ids).tolist()


def test_few_samples_are_all_taken_and_none_are_none() -> None:
    labels, batches, ids = np.array(["a", "b", "a"]), np.array(["x"] * 3), np.array(["1", "2", "3"])
    assert choose(labels, batches, ids).tolist() == [0, 1, 2]
    assert choose(labels[:0], batches[:0], ids[:0]).tolist() == []


def test_examples_are_spread_and_of_the_matched_batch() -> None:
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []
    batches = np.repeat(["x", "y"], [100, 50])
    kept = kept_images(batches)
    assert len(kept) == 2 * PER_BATCH
    only_y = shown(kept, np.arange(100, 150), 12)
    assert len(only_y) == 12
    assert min(only_y) >= 100
