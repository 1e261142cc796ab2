"""Splits: the same for ever, by shares, and one split a group."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionloop.data.splits import assign, position
from visionloop.project import Splits

ids = st.text("0123456789abcdef", min_size=64, max_size=64)
shares = st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.09))
groups = st.text(min_size=1)


@given(ids, groups, st.text(), shares)
def test_a_split_is_a_function_of_group_or_id_alone(
    sample: str, group: str, salt: str, share: tuple[float, float]
) -> None:
    splits = Splits(train=share[0], validation=share[1], salt=salt)
    alone = assign(sample, "", splits)
    assert alone == assign(sample, "", splits) and alone in ("train", "validation", "test")
    assert assign(sample, group, splits) == assign("0" * 64, group, splits)


@given(groups, st.sampled_from(["train", "validation", "test"]), ids, shares)
def test_a_known_group_keeps_its_split_when_shares_change(
    group: str, split: str, sample: str, share: tuple[float, float]
) -> None:
    splits = Splits(train=share[0], validation=share[1])
    assert assign(sample, group, splits, {group: split}) == split
    assert assign(sample, "", splits, {"": split}) == assign(sample, "", splits)


@given(ids, st.text(), st.floats(0.02, 0.8), st.floats(0.001, 0.01))
def test_shares_are_cut_at_their_edges(sample: str, salt: str, train: float, width: float) -> None:
    where = position(sample, salt)
    assert 0.0 <= where < 1.0
    expected = "train" if where < train else "validation" if where < train + width else "test"
    assert assign(sample, "", Splits(train=train, validation=width, salt=salt)) == expected


@given(ids, st.floats(0.1, 0.4), st.floats(0.0, 0.4))
@settings(max_examples=50)
def test_a_larger_training_share_takes_nothing_away_from_training(sample: str, share: float, more: float) -> None:
    small, large = Splits(train=share, validation=0.05), Splits(train=share + more, validation=0.05)
    if assign(sample, "", small) == "train":
        assert assign(sample, "", large) == "train"


def test_shares_come_out_as_asked() -> None:
    splits = Splits(train=0.8, validation=0.05, salt="x")
    counts = Counter(assign(f"{number:064x}", "", splits) for number in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.80) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.05) < 0.006


def test_these_never_change() -> None:
    """A change here would move samples of every project between splits: SHA-256 of salt, 0, id, first 8 bytes."""
    splits = Splits(train=0.8, validation=0.05, salt="fashion")
    found = [assign(f"{number:064x}", "", splits) for number in range(14)]
    assert found == ["train"] * 12 + ["validation", "train"]
    assert position("abc", "salt") == pytest.approx(0.13705066464759535, abs=1e-15)
