"""Golden samples: every class is among them, and the release reads the file that packaging wrote."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.errors import IntegrityError
from visionloop.packaging.golden import COUNT, choose, pack
from visionloop.serving.golden import read_golden


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(1, 80))
def test_the_classes_take_turns(targets: list[int], count: int) -> None:
    wanted = np.array(targets)
    rows = choose(wanted, count)
    assert len(rows) == min(count, len(targets))
    assert np.array_equal(rows, np.unique(rows))
    taken, there = np.bincount(wanted[rows], minlength=10), np.bincount(wanted, minlength=10)
    most = taken.max()
    # A class that has fewer than another's share by more than one has given all of its samples.
    assert all(taken[k] == there[k] for k in range(10) if taken[k] < most - 1)


def test_the_first_of_each_class_are_taken() -> None:
    assert choose(np.array([2, 0, 0, 1, 2, 0, 1]), 4).tolist() == [0, 1, 2, 3]
    assert len(choose(np.zeros(500, np.int64))) == COUNT == 64


def arrays(count: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return images, random.random((count, 3)).astype(np.float32), random.integers(0, 3, count)


def test_the_release_reads_what_was_packed() -> None:
    images, probabilities, targets = arrays()
    data = pack(images, probabilities, targets)
    golden = read_golden(data)
    assert np.array_equal(golden.images, images) and np.array_equal(golden.probabilities, probabilities)
    assert golden.disagreements(probabilities) == 0
    assert golden.disagreements(probabilities[:, ::-1]) > 0
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        assert np.array_equal(found["targets"], targets)


def test_the_same_arrays_give_the_same_bytes_at_any_time() -> None:
    data = pack(*arrays())
    assert data == pack(*arrays())
    assert {entry.date_time[0] for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()} == {1980}


@pytest.mark.parametrize("data", [b"", b"no archive", pack(*arrays())[:-30], pack(*arrays(0))])
def test_a_damaged_or_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"golden\.npz"):
        read_golden(data)
