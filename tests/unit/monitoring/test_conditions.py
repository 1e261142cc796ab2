"""Known conditions: a window's mix is found, and the reference is drawn in the same mix."""

import numpy as np
import pytest

from visionloop.monitoring.conditions import MAX_CONDITIONS, MIN_SHARE, OTHERS, match

RNG = np.random.default_rng(0)


def features(count: int, centre: float) -> np.ndarray:
    return RNG.normal(centre, 1.0, (count, 4)).astype(np.float32)


REFERENCE = np.concatenate([features(1_000, 0.0), features(400, 3.0)])
BATCHES = np.array(["old"] * 1_000 + ["new"] * 400)
ORDER = ["old", "new"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_mix_of_the_window_is_found_and_matched(share: float) -> None:
    window = np.concatenate([features(int(1_000 * (1 - share)), 0.0), features(int(1_000 * share), 3.0)])
    found = match(REFERENCE, window, BATCHES, ORDER, seed=0)
    assert found.shares.get("new", 0.0) == pytest.approx(share, abs=0.03)
    drawn = (BATCHES[found.rows] == "new").mean()
    assert drawn == pytest.approx(found.shares.get("new", 0.0), abs=0.01)
    assert len(np.unique(found.rows)) == len(found.rows) >= 400


def test_an_unknown_condition_stays_far_from_whatever_is_matched() -> None:
    window = features(500, 9.0)
    found = match(REFERENCE, window, BATCHES, ORDER, seed=0)
    assert found.shares["new"] > 0.95
    assert abs(REFERENCE[found.rows].mean() - window.mean()) > 4.0


def test_one_batch_needs_no_matching() -> None:
    found = match(REFERENCE[:100], REFERENCE[:50], np.array(["only"] * 100), ["only"], seed=0)
    assert found.shares == {"only": 1.0}
    assert found.rows.tolist() == list(range(100))


def test_a_small_batch_is_no_condition_of_its_own() -> None:
    batches = np.array(["old"] * 1_000 + ["tiny"] * 20)
    found = match(REFERENCE[:1_020], REFERENCE[:500], batches, ["old", "tiny"], seed=0)
    assert found.shares == {"old": 1.0}


def test_the_oldest_of_many_batches_count_as_one() -> None:
    order = [f"b{number:02d}" for number in range(MAX_CONDITIONS + 3)]
    batches = np.repeat(order, 60)
    found = match(features(len(batches), 0.0), features(400, 0.0), batches, order, seed=0)
    assert set(found.shares) <= {OTHERS, *order[3:]}
    assert all(share >= MIN_SHARE for share in found.shares.values())
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_rows() -> None:
    window = np.concatenate([features(300, 0.0), features(300, 3.0)])
    first, second = (match(REFERENCE, window, BATCHES, ORDER, seed=3) for _ in range(2))
    assert first.rows.tolist() == second.rows.tolist()
